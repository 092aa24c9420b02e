// `longspur doctor`: what this machine and installation can run, and whether the kernels it chose
// compute what they should.
#include <fmt/format.h>

#include <algorithm>

#include "app/cli/console.h"
#include "app/cli/option_table.h"
#include "app/cli/program.h"
#include "app/cli/report.h"
#include "app/cli/verbs/verbs.h"
#include "base/error.h"
#include "engine/machine.h"
#include "engine/self_test.h"

namespace longspur::app::cli {

namespace {

using Tests = std::vector<engine::SelfTestCase>;

bool all_passed(const Tests& tests) {
  return std::all_of(tests.begin(), tests.end(), [](const auto& test) { return test.passed; });
}

Json text_or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

Json cuda_json(const engine::CudaReport& cuda) {
  Json devices = Json::array();
  for (const engine::CudaDevice& device : cuda.devices)
    devices.push_back({{"name", device.name},
                       {"memory_total_bytes", device.memory_total},
                       {"memory_free_bytes", device.memory_free}});
  return {{"available", !cuda.devices.empty()},
          {"library", cuda.library},
          {"loaded", cuda.loaded},
          {"reason", text_or_null(cuda.reason)},
          {"devices", std::move(devices)}};
}

Json models_json(const std::vector<engine::KnownModelFile>& models) {
  Json json = Json::array();
  for (const engine::KnownModelFile& model : models)
    json.push_back({{"name", model.name},
                    {"file", model.file},
                    {"path", text_or_null(model.path)},
                    {"looked_in", model.looked}});
  return json;
}

Json tests_json(const Tests& tests) {
  Json json = Json::array();
  for (const engine::SelfTestCase& test : tests)
    json.push_back({{"name", test.name},
                    {"isa", text_or_null(test.isa)},
                    {"passed", test.passed},
                    {"error", test.error}});  // infinite: null
  return json;
}

Json doctor_json(const engine::Machine& machine, const Tests& tests) {
  Json kernels = Json::object();
  for (const engine::KernelChoice& choice : machine.kernels) kernels[choice.family] = choice.isa;
  Json json = {{"ok", all_passed(tests)}, {"build", version_line()}};
  json["cpu"] = {{"name", text_or_null(machine.processor)},
                 {"threads", machine.threads},
                 {"processors", machine.processors},
                 {"instruction_sets", machine.instruction_sets}};
  json["kernels"] = std::move(kernels);
  json["memory"] = {{"total_bytes", machine.memory_total},
                    {"available_bytes", machine.memory_available},
                    {"huge_pages", text_or_null(machine.huge_pages)}};
  json["models"] = models_json(machine.models);
  json["cuda"] = cuda_json(machine.cuda);
  json["torch_ops"] = {{"path", machine.torch_ops}, {"present", machine.torch_ops_present}};
  json["self_test"] = tests_json(tests);
  return json;
}

std::string line(std::string_view what, const std::string& value) {
  return fmt::format("{:<13}{}\n", what, one_line(value));
}

std::string gigabytes(int64_t bytes) { return fmt::format("{:.1f} GB", double(bytes) / 1e9); }

std::string machine_text(const engine::Machine& machine) {
  std::string out = line("processor", machine.processor.empty() ? "unknown" : machine.processor);
  out += line("threads",
              fmt::format("{} of {} processors may be used", machine.threads, machine.processors));
  out += line("instructions", fmt::format("{}", fmt::join(machine.instruction_sets, " ")));
  for (const engine::KernelChoice& choice : machine.kernels)
    out += line("kernels", fmt::format("{} on {}", choice.family, choice.isa));
  out += line("memory", fmt::format("{} available of {}", gigabytes(machine.memory_available),
                                    gigabytes(machine.memory_total)));
  out += line("huge pages", machine.huge_pages.empty() ? "none" : machine.huge_pages);
  return out;
}

std::string installation_text(const engine::Machine& machine) {
  std::string out;
  for (const engine::KnownModelFile& model : machine.models) {
    const std::string where =
        model.path.empty()
            ? fmt::format("not found in {}; `make setup` fetches it", fmt::join(model.looked, ", "))
            : model.path;
    out += line("model", fmt::format("{}: {}", model.name, where));
  }
  if (!machine.cuda.reason.empty()) out += line("cuda", fmt::format("no: {}", machine.cuda.reason));
  for (size_t i = 0; i < machine.cuda.devices.size(); ++i) {
    const engine::CudaDevice& device = machine.cuda.devices[i];
    out += line("cuda", fmt::format("cuda:{}: {}, {} free of {}", i, device.name,
                                    gigabytes(device.memory_free), gigabytes(device.memory_total)));
  }
  out += line("torch ops", fmt::format("{}{}", machine.torch_ops,
                                       machine.torch_ops_present ? "" : ": not there"));
  return out;
}

std::string tests_text(const Tests& tests) {
  std::string out;
  for (const engine::SelfTestCase& test : tests)
    if (!test.passed)
      out += line("self-test",
                  fmt::format("{} FAILED: error {:.3g} times what may be", test.name, test.error));
  return all_passed(tests) ? line("self-test", fmt::format("{} of {} kernels compute what they "
                                                           "should",
                                                           tests.size(), tests.size()))
                           : out;
}

int run(const Settings& settings) {
  const Tests tests = engine::self_test();
  const engine::Machine machine = engine::describe_machine();
  if (settings.flag("json")) {
    write_json(doctor_json(machine, tests));
  } else {
    write_stdout(concat(line("build", version_line()), machine_text(machine),
                        installation_text(machine), tests_text(tests)));
  }
  require(all_passed(tests),
          "doctor: found kernels with wrong results, expected all to agree with "
          "the reference");
  return 0;
}

}  // namespace

Verb doctor_verb() {
  return {
      .name = "doctor",
      .summary = "shows what this machine can run and tests its kernels",
      .details =
          "Exits with 0 when the CPU path works: every kernel that this processor chose agrees "
          "with "
          "the slow reference. A missing GPU, model or op library is shown, not an error. --json: "
          "ok, build, cpu, kernels, memory, models, cuda, torch_ops, self_test.",
      .examples = {"longspur doctor", "longspur doctor --json"},
      .options = verb_options({}, {}),
      .run = run,
  };
}

}  // namespace longspur::app::cli

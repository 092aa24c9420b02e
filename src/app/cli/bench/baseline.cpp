#include "app/cli/bench/baseline.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace longspur::app::cli::bench {

namespace fs = std::filesystem;

namespace {

constexpr const char* kScript = "llama_cpp_server.py";
constexpr const char* kInstall = "-m pip install llama-cpp-python==0.3.36";

fs::path binary_folder() {
  std::error_code error;
  return fs::read_symlink("/proc/self/exe", error).parent_path();
}

// A build tree's binary stands in <source>/build/<preset>/bin, an installed one in <prefix>/bin.
fs::path source_folder() { return binary_folder().parent_path().parent_path().parent_path(); }

std::string find_script() {
  const fs::path places[] = {
      source_folder() / "bench" / "baselines",
      binary_folder().parent_path() / "share" / "longspur" / "bench",
  };
  std::string looked;
  for (const fs::path& folder : places) {
    std::error_code error;
    if (fs::is_regular_file(folder / kScript, error)) return (folder / kScript).string();
    looked += concat(looked.empty() ? "" : ", ", folder.string());
  }
  throw Error(concat("--compare llama.cpp: ", kScript, " not found in ", looked));
}

std::string find_python(const std::string& wanted) {
  if (!wanted.empty()) return wanted;
  const fs::path own = source_folder() / ".venv" / "bin" / "python";
  std::error_code error;
  return fs::exists(own, error) ? own.string() : "python3";
}

}  // namespace

Baseline::Baseline(const Options& options) : python_(find_python(options.python)) {
  child_ = std::make_unique<ChildProcess>(std::vector<std::string>{python_, find_script()});
  const nlohmann::json answer =
      ask({{"model", options.model}, {"context", options.context}, {"threads", options.threads}});
  title_ = concat(answer.value("name", "?"), " (", answer.value("version", "?"), ")");
}

BaselineRun Baseline::run(bool flash_attention,
                          const std::vector<int32_t>& prompt,
                          const std::vector<int32_t>& tokens) {
  const nlohmann::json answer =
      ask({{"flash_attention", flash_attention}, {"prompt", prompt}, {"tokens", tokens}});
  return {answer.at("prefill_s").get<double>(), answer.at("decode_s").get<std::vector<double>>(),
          answer.at("best").get<std::vector<int32_t>>()};
}

nlohmann::json Baseline::ask(const nlohmann::json& request) {
  child_->write_line(request.dump());
  const nlohmann::json answer = nlohmann::json::parse(child_->read_line(), nullptr, false);
  require(answer.is_object(), "--compare llama.cpp: ", python_, " gave no JSON object");
  if (answer.contains("missing")) {
    throw Error(concat("--compare llama.cpp: ", python_, ": ", answer.value("missing", ""),
                       "; install it with `", python_, " ", kInstall,
                       "` or name another interpreter with --python"));
  }
  require(!answer.contains("error"), "--compare llama.cpp: ", answer.value("error", ""));
  return answer;
}

}  // namespace longspur::app::cli::bench

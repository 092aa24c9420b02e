// `longspur quantize`: a model's linear layers to NVFP4, written in one of four formats.
#include <algorithm>
#include <chrono>
#include <fstream>
#include <optional>

#include "app/cli/console.h"
#include "app/cli/interrupt.h"
#include "app/cli/option_table.h"
#include "app/cli/progress.h"
#include "app/cli/report.h"
#include "app/cli/verbs/verbs.h"
#include "base/error.h"
#include "engine/model_bundle.h"
#include "quant/budget.h"
#include "quant/convert_model.h"
#include "quant/presets.h"

namespace longspur::app::cli {

namespace {

namespace nvfp4 = kernels::nvfp4;
using Clock = std::chrono::steady_clock;

constexpr int64_t kWindow = 2048;  // calibration tokens a sequence

quant::Progress progress_of(Progress& progress) {
  return [&progress](int64_t done, int64_t total) {
    check_interrupt();
    progress.update(double(done), double(total), concat("layer ", done, " of ", total));
  };
}

// Windows of the calibration text; none without one.
std::vector<std::vector<int32_t>> calibration_windows(const Settings& settings,
                                                      const engine::ModelBundle& model,
                                                      int64_t longest) {
  if (!settings.has("calibration")) return {};
  const std::string& source = settings.text("calibration");
  require(model.tokenizer != nullptr, "model '", settings.text("model"),
          "': found no tokenizer, expected one for --calibration");
  std::vector<int32_t> ids = model.tokenizer->encode(read_file(source), {.special = false});
  const auto limit = size_t(settings.integer("calibration-tokens"));
  ids.resize(std::min(ids.size(), limit));
  require(!ids.empty(), source, ": found no text, expected text to calibrate on");
  const auto window = size_t(std::min(kWindow, longest));
  std::vector<std::vector<int32_t>> windows;
  for (size_t begin = 0; begin < ids.size(); begin += window) {
    const size_t end = std::min(begin + window, ids.size());
    windows.emplace_back(ids.begin() + int64_t(begin), ids.begin() + int64_t(end));
  }
  return windows;
}

void need_calibration(const Settings& settings) {
  if (settings.has("calibration")) return;
  const auto refuse = [](const std::string& what) {
    throw UsageError(concat(what, ": found no --calibration, expected a text to calibrate on"));
  };
  const std::string& method = settings.text("method");
  if (quant::needs_calibration(quant::parse_method(method))) refuse(concat("--method ", method));
  if (settings.has("budget-bits")) refuse("--budget-bits");
  if (settings.flag("input-scales")) refuse("--input-scales");
}

quant::Conversion conversion_of(const Settings& settings) {
  need_calibration(settings);
  std::optional<nvfp4::Rule> rule;
  if (settings.has("rule")) rule = nvfp4::parse_rule(settings.text("rule"));
  quant::Conversion conversion =
      quant::preset(quant::parse_method(settings.text("method")), rule,
                    nvfp4::parse_metric(settings.text("metric")), settings.has("calibration"));
  quant::MatrixMethod& matrix = conversion.options.matrix;
  if (settings.flag("act-order")) matrix.act_order = true;
  matrix.recipe.tile_2d = settings.flag("tile-2d");
  if (matrix.recipe.tile_2d && matrix.kind == quant::Kind::kGptq)
    throw UsageError(concat("--tile-2d: found --method ", settings.text("method"),
                            ", expected rtn, awq or smoothquant"));
  return conversion;
}

io::ModelDialect dialect_of(const Settings& settings, const engine::ModelFiles& files) {
  if (settings.has("format")) return io::parse_dialect(settings.text("format"));
  return files.kind == engine::ModelFiles::Kind::kGguf ? io::ModelDialect::kGguf
                                                       : io::ModelDialect::kModelOpt;
}

Json tensor_json(const quant::TensorResult& tensor) {
  Json json = {{"name", tensor.name},
               {"type", dtype_info(tensor.dtype).name},
               {"shape", {tensor.n, tensor.k}},
               {"bytes", tensor.bytes}};
  if (tensor.dtype != DType::kNVFP4) return json;
  json["weight_error"] = tensor.report.weight_error;
  json["output_error"] = tensor.report.output_error;
  json["share_of_4"] = tensor.report.share_of_4;
  return json;
}

Json result_json(const Settings& settings,
                 const quant::ModelJob& job,
                 const quant::ModelResult& result,
                 double seconds) {
  Json tensors = Json::array();
  for (const quant::TensorResult& tensor : result.tensors) tensors.push_back(tensor_json(tensor));
  return {{"file", job.out},
          {"format", io::dialect_name(job.writer.dialect)},
          {"method", settings.text("method")},
          {"rule", nvfp4::rule_name(job.conversion.options.matrix.recipe.rule)},
          {"metric", nvfp4::metric_name(job.conversion.options.matrix.recipe.metric)},
          {"error", result.weight_error},
          {"output_error", result.output_error},
          {"bits_per_weight", result.bits_per_weight},
          {"bytes", result.bytes},
          {"seconds", seconds},
          {"tensors", tensors}};
}

void plan_kept(const Settings& settings,
               const quant::FloatDecoder& decoder,
               const models::DecoderTensors& tensors,
               std::span<const std::vector<int32_t>> windows,
               quant::ModelJob& job) {
  if (!settings.has("budget-bits")) return;
  Progress progress("sensitivity");
  const auto costs =
      quant::measure_sensitivity(decoder, tensors, windows, job.conversion, progress_of(progress));
  job.conversion.kept = quant::plan_model_budget(
      tensors, costs, settings.number("budget-bits"), quant::bits_of(DType::kNVFP4),
      quant::bits_of(quant::kept_type(job.writer.dialect)));
}

quant::ModelResult convert(const Settings& settings,
                           const engine::ModelBundle& model,
                           quant::ModelJob& job) {
  const auto threads = int(settings.integer("threads"));
  ThreadPool pool(threads > 0 ? threads : available_threads());
  const quant::FloatDecoder decoder(model.config, model.tensors, pool);
  const auto windows = calibration_windows(settings, model, decoder.max_window());
  plan_kept(settings, decoder, model.tensors, windows, job);
  Progress progress("quantize");
  return quant::convert_model(decoder, model.tensors, windows, job, progress_of(progress));
}

// Options that ask for weights to be quantised anew, even those that are NVFP4 already.
bool asks_for_quantisation(const Settings& settings) {
  for (const char* option :
       {"rule", "metric", "method", "calibration", "tile-2d", "act-order", "budget-bits"}) {
    if (settings.given(option)) return true;
  }
  return false;
}

// Bytes of the tensors of the model at `path`.
int64_t tensor_bytes(const std::string& path) {
  int64_t bytes = 0;
  const engine::ModelBundle model = engine::open_model(path, false);
  for (const io::TensorInfo& tensor : model.file->tensors()) bytes += int64_t(tensor.data.size());
  return bytes;
}

void write_report(const std::string& path, const Json& json) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << json.dump(1) << "\n";
  file.close();
  require(bool(file), path, ": cannot be written");
}

int run(const Settings& settings) {
  const Clock::time_point begin = Clock::now();
  quant::ModelJob job;
  job.out = settings.required("output");
  job.conversion = conversion_of(settings);
  job.input_scales = settings.flag("input-scales");
  const engine::ModelFiles files = engine::resolve_model(settings.required("model"));
  job.source = files.path;
  job.writer.dialect = dialect_of(settings, files);
  job.writer.overwrite = settings.flag("force");
  job.writer.scale_top = nvfp4::scale_top(job.conversion.options.matrix.recipe);
  const engine::ModelBundle model =
      engine::open_model(settings.text("model"), settings.has("calibration"));
  const bool copies = quant::holds_nvfp4(model.tensors) && !asks_for_quantisation(settings);
  quant::ModelResult result =
      copies ? quant::copy_model(model.tensors, job) : convert(settings, model, job);
  if (copies) result.bytes = tensor_bytes(job.out);
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  const Json json = result_json(settings, job, result, seconds);
  if (settings.has("report")) write_report(settings.text("report"), json);
  if (settings.flag("json")) {
    write_json(json);
  } else {
    write_stdout(concat(job.out, ": ", result.bytes >> 20, " MiB, ", result.bits_per_weight,
                        " bits a weight, relative squared error ", result.weight_error, ", ",
                        seconds, " s\n"));
  }
  return 0;
}

std::vector<Option> method_options() {
  const std::string group = "Method";
  return {
      {.name = "rule",
       .group = group,
       .help = "how each block's scale is chosen; default: four_over_six, with --calibration sweep",
       .placeholder = "RULE",
       .choices = {"static_6", "static_4", "four_over_six", "sweep", "full_sweep"}},
      {.name = "metric",
       .fallback = "mse",
       .group = group,
       .help = "the error that the choice of scales makes small",
       .placeholder = "METRIC",
       .choices = {"mse", "mae", "abs_max"}},
      {.name = "method",
       .fallback = "rtn",
       .group = group,
       .help = "rtn rounds to nearest; the others need --calibration",
       .placeholder = "METHOD",
       .choices = {"rtn", "gptq", "awq", "smoothquant", "best"}},
      {.name = "calibration",
       .group = group,
       .help = "text like that which the model will read (- for stdin); errors are weighed by it",
       .placeholder = "FILE",
       .completes = Completes::kFile},
      {.name = "calibration-tokens",
       .type = OptionType::kInteger,
       .fallback = "16384",
       .group = group,
       .help = "only the first N tokens of that text",
       .placeholder = "N",
       .low = 1},
      {.name = "tile-2d",
       .type = OptionType::kFlag,
       .group = group,
       .help = "one scale for 16 x 16 weights, so that the transpose quantises alike"},
      {.name = "act-order",
       .type = OptionType::kFlag,
       .group = group,
       .help = "gptq: columns with the largest inputs first"},
      {.name = "budget-bits",
       .type = OptionType::kNumber,
       .group = group,
       .help = "bits a weight on average; the most sensitive layers stay in Q8_0 or BF16",
       .placeholder = "B",
       .low = 4.5,
       .high = 16},
  };
}

std::vector<Option> own_options() {
  const std::string group = "Output";
  std::vector<Option> options = {
      {.name = "output",
       .group = group,
       .help = "folder or .gguf file to write",
       .placeholder = "PATH",
       .letter = 'o',
       .completes = Completes::kFile},
      {.name = "format",
       .group = group,
       .help = "default: gguf for a GGUF file, modelopt for a folder",
       .placeholder = "FORMAT",
       .choices = {"modelopt", "compressed-tensors", "fouroversix", "gguf"}},
      {.name = "input-scales",
       .type = OptionType::kFlag,
       .group = group,
       .help = "store the inputs' scales too, for engines that quantise activations"},
      {.name = "report",
       .group = group,
       .help = "write what --json prints to this file as well",
       .placeholder = "FILE",
       .completes = Completes::kFile},
      {.name = "force",
       .type = OptionType::kFlag,
       .group = group,
       .help = "replace what is at --output"},
      threads_option(group),
  };
  for (Option& option : method_options()) options.push_back(std::move(option));
  return options;
}

}  // namespace

Verb quantize_verb() {
  return {
      .name = "quantize",
      .summary = "turns a model's linear layers into NVFP4",
      .details =
          "Embedding, head and norms stay as they are. A model that is NVFP4 already only changes "
          "its "
          "format, bit for bit, unless an option under Method is given. Matrices that engines fuse "
          "(q, k, v; gate, "
          "up) share a tensor scale. The output appears whole or not at all. --json: error "
          "(relative, squared, of the weights), output_error, bits_per_weight, bytes, seconds, "
          "tensors (name, type, shape, bytes, weight_error, output_error, share_of_4: of the "
          "blocks whose largest value became 4).",
      .examples = {"longspur quantize -m smollm2 -o smollm2-nvfp4.gguf",
                   "longspur quantize -m ./model -o ./model-nvfp4 --calibration text.txt "
                   "--method best",
                   "longspur quantize -m smollm2 -o small.gguf --calibration text.txt "
                   "--budget-bits 5 --report layers.json"},
      .options = verb_options(own_options(), {OptionGroup::kModel}),
      .run = run,
  };
}

}  // namespace longspur::app::cli

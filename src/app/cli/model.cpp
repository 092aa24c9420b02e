#include "app/cli/model.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "app/cli/interrupt.h"
#include "app/cli/progress.h"
#include "base/error.h"
#include "engine/memory_plan.h"
#include "engine/model_bundle.h"

namespace longspur::app::cli {

namespace {

// "cpu", "cuda", "cuda:12"
bool is_device(const std::string& text) {
  if (text == "cpu" || text == "cuda") return true;
  constexpr std::string_view kPrefix = "cuda:";
  if (!text.starts_with(kPrefix)) return false;
  const std::string index = text.substr(kPrefix.size());
  return !index.empty() && index.size() <= 3 &&
         std::all_of(index.begin(), index.end(), [](unsigned char c) { return std::isdigit(c); });
}

std::optional<int64_t> integer_if_given(const Settings& settings, std::string_view name) {
  return settings.has(name) ? std::optional(settings.integer(name)) : std::nullopt;
}

engine::AttentionOptions attention_options(const Settings& settings) {
  engine::AttentionOptions options;
  options.kind = settings.text("attention");
  if (options.kind != "xattention") {
    for (const Setting& setting : settings.all())
      if (setting.option->name.starts_with("xattn-") && setting.source == Source::kFlag) {
        throw UsageError(concat(flag_name(*setting.option), ": found --attention ", options.kind,
                                ", expected --attention xattention"));
      }
    return options;
  }
  if (settings.has("xattn-threshold")) options.threshold = settings.number("xattn-threshold");
  options.thresholds_file = settings.text_or_empty("xattn-thresholds");
  options.estimator = settings.text_or_empty("xattn-estimator");
  options.block_size = integer_if_given(settings, "xattn-block").value_or(0);
  options.rule = settings.text_or_empty("xattn-rule");
  options.guard = settings.number("xattn-guard");
  options.sink_blocks = settings.integer("xattn-sink");
  options.local_blocks = settings.integer("xattn-local");
  options.mask_per_head = settings.text("xattn-masks") == "head";
  options.mean_correction = settings.flag("xattn-mean-correction");
  options.first_layers_dense = settings.integer("xattn-first-layers-dense");
  options.last_tokens_dense = settings.integer("xattn-last-dense");
  options.min_length = integer_if_given(settings, "xattn-min-length");
  return options;
}

}  // namespace

engine::EngineOptions engine_options(const Settings& settings, int64_t sequences) {
  engine::EngineOptions options;
  options.model = settings.required("model");
  options.device = settings.text("device");
  if (!is_device(options.device)) {
    throw UsageError(
        concat("--device: found '", options.device, "', expected cpu, cuda or cuda:INDEX"));
  }
  options.threads = int(settings.integer("threads"));
  options.compute =
      settings.text("compute") == "fp32" ? engine::Compute::kFp32 : engine::Compute::kDefault;
  options.activations = settings.text("activations");
  options.kv_type =
      settings.text("kv-type") == "nvfp4" ? engine::KvStorage::kNVFP4 : engine::KvStorage::kBF16;
  options.attention = attention_options(settings);
  options.max_context = settings.integer("max-context");
  const int64_t wanted = settings.integer("max-sequences");
  options.max_sequences = wanted > 0 ? wanted : sequences;
  options.prefill_chunk = settings.integer("prefill-chunk");
  options.kv_bytes = settings.integer("kv-bytes");
  return options;
}

std::unique_ptr<engine::Engine> load_engine(const engine::EngineOptions& options) {
  spdlog::info("loading {} on {}", options.model, options.device);
  Progress progress("load");
  auto engine = engine::Engine::load(options, [&](int64_t done, int64_t total) {
    check_interrupt();
    progress.update(double(done), double(total), concat(done >> 20, " of ", total >> 20, " MiB"));
  });
  progress.clear();
  const engine::EngineStats stats = engine->stats();
  spdlog::info("loaded in {:.2f} s: weights {} MiB, cache {} MiB, context {} tokens", stats.load_s,
               stats.memory.weights_bytes >> 20, stats.memory.kv_bytes >> 20,
               engine->max_context());
  return engine;
}

ModelLimits model_limits(const engine::EngineOptions& options) {
  const io::ModelConfig config = engine::open_model(options.model, false).config;
  return {config.vocab, engine::context_of(options, config)};
}

std::unique_ptr<io::Tokenizer> open_tokenizer(const std::string& model) {
  if (std::filesystem::path(model).extension() == ".json") return io::Tokenizer::from_hf(model);
  const engine::ModelFiles files = engine::resolve_model(model);
  if (files.kind == engine::ModelFiles::Kind::kHfFolder) return io::Tokenizer::from_hf(files.path);
  return io::Tokenizer::from_gguf(*io::GgufFile::open(files.path));
}

}  // namespace longspur::app::cli

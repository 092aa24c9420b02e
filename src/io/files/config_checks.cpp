#include "io/files/config_checks.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "io/files/printable.h"

namespace longspur::io {

namespace {

struct Checker {
  const std::string& where;

  void integer(const char* field, int64_t value, int64_t low, int64_t high) const {
    require(value >= low && value <= high, where, ": ", field, ": found ", value, ", expected ",
            low, " to ", high);
  }
  void number(const char* field, double value, double low, double high) const {
    require(std::isfinite(value) && value >= low && value <= high, where, ": ", field, ": found ",
            value, ", expected ", low, " to ", high);
  }
};

void validate_rope(const ModelConfig& config, const Checker& check) {
  const RopeScaling& rope = config.rope_scaling;
  check.number("rope_theta", config.rope_theta, 1.0, 1e12);
  if (rope.kind == RopeScaling::Kind::kNone) return;
  check.number("rope factor", rope.factor, 1.0, 1e6);
  check.integer("original_max_position_embeddings", rope.original_max_position, 0,
                int64_t(1) << 40);
  check.number("low_freq_factor", rope.low_freq_factor, 1e-6, 1e6);
  check.number("high_freq_factor", rope.high_freq_factor, 1e-6, 1e6);
  // the formulas divide by rotary_dim - 2 and by log(theta)
  if (rope.kind == RopeScaling::Kind::kDynamic)
    check.integer("rotary dimension with dynamic RoPE", config.rotary_dim, 4, config.head_dim);
  if (rope.kind == RopeScaling::Kind::kYarn)
    check.number("rope_theta with YaRN", config.rope_theta, 1.001, 1e12);
  if (rope.kind == RopeScaling::Kind::kLlama3) {
    require(rope.high_freq_factor > rope.low_freq_factor, check.where, ": high_freq_factor: found ",
            rope.high_freq_factor, ", expected above low_freq_factor of ", rope.low_freq_factor);
  }
  check.number("beta_fast", rope.beta_fast, 1e-6, 1e6);
  check.number("beta_slow", rope.beta_slow, 1e-6, 1e6);
  if (rope.attention_factor) check.number("attention_factor", *rope.attention_factor, 1e-6, 1e6);
  if (rope.mscale) check.number("mscale", *rope.mscale, 0.0, 1e6);
  if (rope.mscale_all_dim) check.number("mscale_all_dim", *rope.mscale_all_dim, 0.0, 1e6);
}

}  // namespace

void validate_config(const ModelConfig& config, const std::string& where) {
  const Checker check{where};
  check.integer("vocab_size", config.vocab, 1, int64_t(1) << 22);
  check.integer("hidden_size", config.hidden, 1, 1 << 17);
  check.integer("intermediate_size", config.intermediate, 1, 1 << 20);
  check.integer("num_hidden_layers", config.layers, 1, kMaxLayers);
  check.integer("num_attention_heads", config.heads, 1, 1024);
  check.integer("num_key_value_heads", config.kv_heads, 1, config.heads);
  require(config.heads % config.kv_heads == 0, where, ": num_attention_heads: found ", config.heads,
          ", expected a multiple of num_key_value_heads ", config.kv_heads);
  check.integer("head_dim", config.head_dim, 2, 512);
  require(config.head_dim % 2 == 0, where, ": head_dim: found ", config.head_dim,
          ", expected an even number");
  check.integer("rotary dimension", config.rotary_dim, 2, config.head_dim);
  require(config.rotary_dim % 2 == 0, where, ": rotary dimension: found ", config.rotary_dim,
          ", expected an even number");
  check.integer("max_position_embeddings", config.max_position, 1, int64_t(1) << 30);
  check.number("rms_norm_eps", config.rms_eps, 0.0, 1.0);
  for (const int64_t window : config.sliding_window)
    check.integer("sliding_window", window, 0, int64_t(1) << 30);
  LONGSPUR_ASSERT(int64_t(config.sliding_window.size()) == config.layers);
  validate_rope(config, check);
  require(config.rope_freq_factors.empty() ||
              int64_t(config.rope_freq_factors.size()) == config.rotary_dim / 2,
          where, ": rope_freqs.weight: found ", config.rope_freq_factors.size(),
          " factors, expected ", config.rotary_dim / 2);
  for (const float factor : config.rope_freq_factors)
    check.number("rope_freqs.weight", factor, 1e-6, 1e6);
}

std::string_view architecture_name(Architecture architecture) {
  switch (architecture) {
    case Architecture::kLlama:
      return "llama";
    case Architecture::kMistral:
      return "mistral";
    case Architecture::kQwen2:
      return "qwen2";
    case Architecture::kQwen3:
      return "qwen3";
  }
  throw InternalError("architecture_name: found a value outside the enum");
}

Architecture parse_architecture(const std::string& name, const std::string& where) {
  for (const Architecture architecture :
       {Architecture::kLlama, Architecture::kMistral, Architecture::kQwen2, Architecture::kQwen3}) {
    if (name == architecture_name(architecture)) return architecture;
  }
  throw UnsupportedError(
      concat(where, ": found ", shown(name), ", expected llama, mistral, qwen2 or qwen3"));
}

int64_t default_context(const ModelConfig& config) {
  if (config.rope_scaling.kind != RopeScaling::Kind::kDynamic) return config.max_position;
  return std::max(config.max_position,
                  int64_t(double(config.max_position) * config.rope_scaling.factor));
}

}  // namespace longspur::io

// What a decoder model is, read from an HF config.json or from GGUF metadata into one structure.
// Every field was validated (positive, consistent, bounded) by the function that made it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/files/gguf.h"
#include "io/files/quantization_config.h"

namespace longspur::io {

enum class Architecture { kLlama, kMistral, kQwen2, kQwen3 };
std::string_view architecture_name(Architecture architecture);

// Scaling of rotary position embeddings, as transformers' modeling_rope_utils defines each.
struct RopeScaling {
  enum class Kind { kNone, kLinear, kDynamic, kLlama3, kYarn };
  Kind kind = Kind::kNone;
  double factor = 1.0;
  int64_t original_max_position = 0;             // 0: the model's max_position
  double low_freq_factor = 1.0;                  // llama3
  double high_freq_factor = 4.0;                 // llama3
  double beta_fast = 32.0;                       // yarn
  double beta_slow = 1.0;                        // yarn
  std::optional<double> attention_factor;        // yarn; else derived
  std::optional<double> mscale, mscale_all_dim;  // yarn
  bool truncate = true;                          // yarn
};

struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  std::string name;
  int64_t vocab = 0;         // V
  int64_t hidden = 0;        // C
  int64_t intermediate = 0;  // F
  int64_t layers = 0;
  int64_t heads = 0;         // H
  int64_t kv_heads = 0;      // G
  int64_t head_dim = 0;      // D
  int64_t rotary_dim = 0;    // <= head_dim, even
  int64_t max_position = 0;  // trained context
  double rms_eps = 1e-6;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  bool tied_embeddings = false;
  bool qkv_bias = false;     // qwen2, or attention_bias
  bool output_bias = false;  // attention o_proj bias
  bool mlp_bias = false;
  bool qk_norm = false;  // qwen3: RMSNorm over D on q and k before RoPE
  // Sliding window of each layer in tokens (a query sees itself and the window-1 keys before it);
  // 0: full attention. Size `layers`.
  std::vector<int64_t> sliding_window;
  // GGUF files of the llama family store q and k rows permuted for adjacent-pair RoPE; the loader
  // must undo it (models/ uses half-split pairs everywhere).
  bool permuted_qk = false;
  // Divisors of the rotary frequencies, [rotary_dim / 2] (GGUF's rope_freqs.weight); empty: none.
  std::vector<float> rope_freq_factors;
  Quantization quantization;  // of an HF folder
};

// Tokens a sequence may have unless told otherwise: the trained context, which dynamic scaling
// stretches by its factor without further training.
int64_t default_context(const ModelConfig& config);

ModelConfig model_config_from_gguf(const GgufFile& file);
ModelConfig model_config_from_hf(const std::string& folder);  // reads config.json

// Defaults of generation that the model's files state (generation_config.json, GGUF eos keys).
struct GenerationDefaults {
  std::vector<int32_t> eos_ids;
  std::optional<int32_t> bos_id, pad_id;
  std::optional<double> temperature, top_p, repetition_penalty;
  std::optional<int64_t> top_k;
  std::optional<bool> do_sample;
};
GenerationDefaults generation_defaults_from_hf(const std::string& folder);
GenerationDefaults generation_defaults_from_gguf(const GgufFile& file);

// chat_template.jinja, else the (default) template in tokenizer_config.json; empty when there is
// none. UTF-8, at most 1 MiB.
std::string chat_template_from_hf(const std::string& folder);

}  // namespace longspur::io

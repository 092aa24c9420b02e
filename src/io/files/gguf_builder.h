// For tests: GGUF files built key by key, right or wrong as wanted.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/files/test_files.h"

namespace longspur::io::testing {

class GgufBuilder {
 public:
  GgufBuilder& version(uint32_t version) {
    version_ = version;
    return *this;
  }
  // Counts other than those of what was added.
  GgufBuilder& counts(uint64_t tensors, uint64_t keys) {
    counts_ = {tensors, keys};
    return *this;
  }
  GgufBuilder& key(std::string_view name, uint32_t type, std::string_view value) {
    body_.text(name).put(type).raw(value);
    ++keys_;
    return *this;
  }
  GgufBuilder& number(std::string_view name, uint32_t value) {
    return key(name, 4, Bytes().put(value).str());
  }
  GgufBuilder& number(std::string_view name, float value) {
    return key(name, 6, Bytes().put(value).str());
  }
  GgufBuilder& string(std::string_view name, std::string_view value) {
    return key(name, 8, Bytes().text(value).str());
  }
  // Dimensions as GGUF has them, innermost first. All keys come before all tensors.
  GgufBuilder& tensor(std::string_view name,
                      const std::vector<uint64_t>& dims,
                      uint32_t type,
                      uint64_t offset) {
    body_.text(name).put(uint32_t(dims.size()));
    for (const uint64_t dim : dims) body_.put(dim);
    body_.put(type).put(offset);
    ++tensors_;
    return *this;
  }
  // A tensor of fp32 with its data behind that of the one before.
  GgufBuilder& values(std::string_view name,
                      const std::vector<uint64_t>& dims,
                      const std::vector<float>& values) {
    tensor(name, dims, 0, data_.size());
    data_.raw({reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)});
    data_.pad(32);
    return *this;
  }
  GgufBuilder& raw(std::string_view bytes) {
    body_.raw(bytes);
    return *this;
  }
  GgufBuilder& data(std::string_view bytes, size_t alignment = 32) {
    data_.raw(bytes);
    alignment_ = alignment;
    return *this;
  }

  std::string str() const {
    Bytes file;
    const auto [tensors, keys] = counts_.value_or(std::pair(tensors_, keys_));
    file.raw("GGUF").put(version_).put(tensors).put(keys).raw(body_.str());
    if (data_.size() > 0 || tensors_ > 0) file.pad(alignment_);
    return file.raw(data_.str()).str();
  }

 private:
  uint32_t version_ = 3;
  std::optional<std::pair<uint64_t, uint64_t>> counts_;
  uint64_t tensors_ = 0, keys_ = 0;
  Bytes body_, data_;
  size_t alignment_ = 32;
};

// The keys of a small model of the llama family, to be changed by a test.
inline GgufBuilder llama_keys() {
  GgufBuilder builder;
  builder.string("general.architecture", "llama")
      .number("llama.context_length", 128u)
      .number("llama.embedding_length", 8u)
      .number("llama.block_count", 2u)
      .number("llama.feed_forward_length", 16u)
      .number("llama.attention.head_count", 2u)
      .number("llama.attention.head_count_kv", 1u)
      .number("llama.attention.layer_norm_rms_epsilon", 1e-5f)
      .number("tokenizer.ggml.eos_token_id", 2u);
  return builder;
}

inline std::string tiny_llama_gguf() {
  GgufBuilder builder = llama_keys();
  const auto add = [&](const std::string& name, const std::vector<uint64_t>& dims) {
    uint64_t count = 1;
    for (const uint64_t dim : dims) count *= dim;
    std::vector<float> values(count);
    for (size_t i = 0; i < count; ++i) values[i] = 0.01f * float(i % 31);
    builder.values(name, dims, values);
  };
  add("token_embd.weight", {8, 5});
  add("output_norm.weight", {8});
  for (const char* layer : {"blk.0.", "blk.1."}) {
    add(std::string(layer) + "attn_norm.weight", {8});
    add(std::string(layer) + "attn_q.weight", {8, 8});
    add(std::string(layer) + "attn_k.weight", {8, 4});
    add(std::string(layer) + "attn_v.weight", {8, 4});
    add(std::string(layer) + "attn_output.weight", {8, 8});
    add(std::string(layer) + "ffn_norm.weight", {8});
    add(std::string(layer) + "ffn_gate.weight", {8, 16});
    add(std::string(layer) + "ffn_up.weight", {8, 16});
    add(std::string(layer) + "ffn_down.weight", {16, 8});
  }
  return builder.str();
}

}  // namespace longspur::io::testing

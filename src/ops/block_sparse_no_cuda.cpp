// What a build without CUDA kernels has of its own for CUDA tensors: nothing.
#include "ops/attention_impl.h"
#include "ops/block_words.h"

namespace longspur::ops {

std::span<const AttentionImplementation* const> attention_device_implementations() { return {}; }
std::span<const AttentionImplementation* const> block_sparse_device_implementations() { return {}; }
std::span<const BlockWordsImplementation* const> block_words_device_implementations() { return {}; }

}  // namespace longspur::ops

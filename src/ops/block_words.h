// Masks of blocks: the booleans that torch programs handle and the bits that kernels read
// (kernels/common/block_mask.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/common/block_mask.h"

namespace longspur::ops {

// bool [B, heads, nQ, nK] to int32 [B, heads, nQ, BlockMask::words_of(nK)], and back.
at::Tensor block_words(const at::Tensor& blocks);
at::Tensor unpacked_block_words(const at::Tensor& words, int64_t key_blocks);

// The kernels' view of words; no words, no mask.
kernels::BlockMask block_mask_of(const at::Tensor& words, int64_t block_size);
uint32_t* mutable_words(const at::Tensor& words);

// Private to ops/: how a device does it. rows x key_blocks booleans, both sides contiguous.
struct BlockWordsImplementation {
  std::string_view name;
  bool (*accepts)(const at::Tensor&);
  void (*pack)(const at::Tensor& blocks, const at::Tensor& words);
  void (*unpack)(const at::Tensor& words, const at::Tensor& blocks);
};
std::span<const BlockWordsImplementation* const> block_words_device_implementations();

}  // namespace longspur::ops

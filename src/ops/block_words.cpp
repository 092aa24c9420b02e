#include "ops/block_words.h"

#include <ATen/ops/empty.h>

#include "base/shape.h"
#include "kernels/block_sparse/api.h"
#include "ops/parallel.h"

namespace longspur::ops {

namespace {

constexpr int64_t kRowsAnItem = 256;

// Calls f(first, rows) for pieces of [0, rows).
template <class F>
void for_each_piece(int64_t rows, F&& f) {
  for_each_item(ceil_div(rows, kRowsAnItem), 0, [&](int64_t item, std::byte*) {
    const int64_t first = item * kRowsAnItem;
    f(first, first + kRowsAnItem < rows ? kRowsAnItem : rows - first);
  });
}

bool on_cpu(const at::Tensor& x) { return x.device().is_cpu(); }

const uint8_t* bytes_of(const at::Tensor& blocks) {
  return static_cast<const uint8_t*>(blocks.const_data_ptr());
}
const uint32_t* words_of(const at::Tensor& words) {
  return static_cast<const uint32_t*>(words.const_data_ptr());
}

int64_t rows_of(const at::Tensor& x) { return x.size(0) * x.size(1) * x.size(2); }

void pack(const at::Tensor& blocks, const at::Tensor& words) {
  const int64_t key_blocks = blocks.size(3), row_words = words.size(3);
  const uint8_t* from = bytes_of(blocks);
  uint32_t* to = mutable_words(words);
  for_each_piece(rows_of(blocks), [&](int64_t first, int64_t rows) {
    kernels::block_sparse::pack_mask(from + first * key_blocks, rows, key_blocks,
                                     to + first * row_words);
  });
}

void unpack(const at::Tensor& words, const at::Tensor& blocks) {
  const int64_t key_blocks = blocks.size(3), row_words = words.size(3);
  const uint32_t* from = words_of(words);
  auto* to = static_cast<uint8_t*>(blocks.mutable_data_ptr());
  for_each_piece(rows_of(blocks), [&](int64_t first, int64_t rows) {
    kernels::block_sparse::unpack_mask(from + first * row_words, rows, key_blocks,
                                       to + first * key_blocks);
  });
}

constexpr BlockWordsImplementation kCpu = {"cpu", on_cpu, pack, unpack};

// The device's own, or none: then the CPU does it.
const BlockWordsImplementation* device_implementation(const at::Tensor& x) {
  for (const BlockWordsImplementation* candidate : block_words_device_implementations()) {
    if (candidate->accepts(x)) return candidate;
  }
  return nullptr;
}

at::Tensor empty_words(const at::Tensor& blocks) {
  return at::empty({blocks.size(0), blocks.size(1), blocks.size(2),
                    kernels::BlockMask::words_of(blocks.size(3))},
                   blocks.options().dtype(at::kInt));
}

at::Tensor empty_blocks(const at::Tensor& words, int64_t key_blocks) {
  return at::empty({words.size(0), words.size(1), words.size(2), key_blocks},
                   words.options().dtype(at::kBool));
}

}  // namespace

at::Tensor block_words(const at::Tensor& blocks) {
  const BlockWordsImplementation* device = device_implementation(blocks);
  const at::Tensor here = (device ? blocks : blocks.to(at::kCPU)).contiguous();
  const at::Tensor words = empty_words(here);
  if (here.numel() > 0)
    (device ? *device : kCpu).pack(here, words);
  else
    words.zero_();
  return device ? words : words.to(blocks.device());
}

at::Tensor unpacked_block_words(const at::Tensor& words, int64_t key_blocks) {
  const BlockWordsImplementation* device = device_implementation(words);
  const at::Tensor here = (device ? words : words.to(at::kCPU)).contiguous();
  const at::Tensor blocks = empty_blocks(here, key_blocks);
  if (blocks.numel() > 0) (device ? *device : kCpu).unpack(here, blocks);
  return device ? blocks : blocks.to(words.device());
}

kernels::BlockMask block_mask_of(const at::Tensor& words, int64_t block_size) {
  if (!words.defined()) return {};
  return {words_of(words), block_size, words.size(1), words.size(2), words.size(3)};
}

uint32_t* mutable_words(const at::Tensor& words) {
  return static_cast<uint32_t*>(words.mutable_data_ptr());
}

}  // namespace longspur::ops

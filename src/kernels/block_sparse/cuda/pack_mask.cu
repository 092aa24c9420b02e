// Bools to the words of a mask and back, a warp's lanes a word's bits.
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/block_sparse/cuda/block_sparse_cuda.h"
#include "kernels/common/cuda/launch.cuh"
#include "kernels/common/cuda/status.cuh"

namespace longspur::kernels::block_sparse::cuda {

namespace {

constexpr int kThreads = 256;

__global__ void pack_kernel(const uint8_t* blocks,
                            int64_t words_in_all,
                            int64_t key_blocks,
                            int64_t row_words,
                            uint32_t* words) {
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t warps = int64_t(gridDim.x) * (kThreads / kWarp);
  for (int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kWarp; i < words_in_all;
       i += warps) {
    const int64_t row = i / row_words, j = i % row_words * 32 + lane;
    const uint32_t word = __ballot_sync(~0u, j < key_blocks && blocks[row * key_blocks + j] != 0);
    if (lane == 0) words[i] = word;
  }
}

__global__ void unpack_kernel(const uint32_t* words,
                              int64_t blocks_in_all,
                              int64_t key_blocks,
                              int64_t row_words,
                              uint8_t* blocks) {
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < blocks_in_all;
       i += int64_t(gridDim.x) * kThreads) {
    const int64_t row = i / key_blocks, j = i % key_blocks;
    blocks[i] = uint8_t(words[row * row_words + j / 32] >> (j % 32) & 1u);
  }
}

unsigned grid(int64_t threads) {
  return unsigned(std::min<int64_t>(ceil_div(threads, int64_t{kThreads}), 4096));
}

}  // namespace

CudaStatus pack_mask(
    const uint8_t* blocks, int64_t rows, int64_t key_blocks, uint32_t* words, void* stream) {
  const int64_t row_words = BlockMask::words_of(key_blocks), count = rows * row_words;
  if (count == 0) return nullptr;
  pack_kernel<<<grid(count * kWarp), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      blocks, count, key_blocks, row_words, words);
  return launch_status();
}

CudaStatus unpack_mask(
    const uint32_t* words, int64_t rows, int64_t key_blocks, uint8_t* blocks, void* stream) {
  const int64_t row_words = BlockMask::words_of(key_blocks), count = rows * key_blocks;
  if (count == 0) return nullptr;
  unpack_kernel<<<grid(count), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      words, count, key_blocks, row_words, blocks);
  return launch_status();
}

}  // namespace longspur::kernels::block_sparse::cuda

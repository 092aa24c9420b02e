// Scores of key blocks and their selection on CUDA. Semantics are those of kernels/xattn/api.h and
// estimator.h. Pointers are device pointers, `stream` is a cudaStream_t; launchers return nullptr
// or an error text, never wait, and allocate nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/block_mask.h"
#include "kernels/common/cuda/status.h"
#include "kernels/xattn/api.h"

namespace longspur::kernels::xattn::cuda {

enum class Type { kBF16, kF16, kF32 };

// Terms against exact keys or strided ones run on the tensor cores for D 64 and 128, bf16 and fp16,
// rows at multiples of 16 bytes; everything else takes slower kernels with the same results. Means
// are rounded to the operands' type on the tensor cores.
struct ScoreArgs {
  const int32_t* cu_seqlens_q = nullptr;  // [B + 1]
  const int32_t* cu_seqlens_k = nullptr;
  int64_t batch = 0, heads = 0, kv_heads = 0, head_dim = 0;
  int64_t total_q = 0, total_k = 0, max_seqlen_q = 0, max_seqlen_k = 0;
  bool causal = true;
  float scale = 1.0f;
  Type type = Type::kBF16;
  const void* q = nullptr;  // [Tq, H, D], elements of a head contiguous
  int64_t q_token_stride = 0, q_head_stride = 0;
  const void* k = nullptr;  // [Tk, G, D]
  int64_t k_token_stride = 0, k_head_stride = 0;
  Estimator estimator;
  int64_t block_size = 128;
  float* scores = nullptr;  // [B, score_heads, query_blocks, key_blocks]
  int64_t score_heads = 0;  // H or G
  int64_t query_blocks = 0, key_blocks = 0;
  void* workspace = nullptr;
};
int64_t block_scores_workspace_bytes(const ScoreArgs& args);
CudaStatus block_scores(const ScoreArgs& args, void* stream);

// As xattn::SelectArgs, with device pointers.
CudaStatus select(const SelectArgs& args, void* stream);

}  // namespace longspur::kernels::xattn::cuda

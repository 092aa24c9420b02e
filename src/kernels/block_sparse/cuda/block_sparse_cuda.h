// Block-sparse and dense attention on Hopper. Semantics are those of kernels/block_sparse/api.h.
// Pointers are device pointers, `stream` is a cudaStream_t; launchers return nullptr or an error
// text, never wait, and allocate nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/block_mask.h"
#include "kernels/common/cuda/status.h"

namespace longspur::kernels::block_sparse::cuda {

enum class Type { kBF16, kF16, kF32 };

struct Shape {
  const int32_t* cu_seqlens_q = nullptr;  // [B + 1]
  const int32_t* cu_seqlens_k = nullptr;  // [B + 1]
  int64_t batch = 0;                      // B
  int64_t heads = 0, kv_heads = 0;        // H, a multiple of G
  int64_t head_dim = 0;                   // D
  int64_t total_q = 0, total_k = 0;       // Tq, Tk
  int64_t max_seqlen_q = 0, max_seqlen_k = 0;
  bool causal = true;
  float scale = 1.0f;
  Type type = Type::kBF16;  // of every operand but lse
};

// [T, heads, D], elements of a head contiguous; strides in elements.
struct ConstRows {
  const void* data = nullptr;
  int64_t token_stride = 0, head_stride = 0;
};
struct Rows {
  void* data = nullptr;
  int64_t token_stride = 0, head_stride = 0;
};

// Keys and values in the pages of kernels/attention/cuda/paged_cuda.h instead of k and v: page
// block_table[(b G + g) max_blocks + t / 64] holds K [64, D], then V [64, D] of tokens t.
struct Pages {
  const void* pool = nullptr;
  int64_t pages = 0;  // of the pool
  const int32_t* block_table = nullptr;
  int64_t max_blocks = 0;
};

struct ForwardArgs {
  Shape shape;
  ConstRows q, k, v;
  Pages paged;  // pool null: k and v
  Rows out;
  float* lse = nullptr;  // [H, Tq] natural log, heads at lse_stride
  int64_t lse_stride = 0;
  BlockMask mask;  // words null: every block (dense attention)
  void* workspace = nullptr;
};
// True where the fast kernel takes it: D 64 or 128, bf16 or fp16, 16-byte aligned rows. Everything
// else goes to a slower kernel with the same results; only sizes beyond it are an error text.
bool forward_is_fast(const ForwardArgs& args);
int64_t forward_workspace_bytes(const ForwardArgs& args);
CudaStatus forward(const ForwardArgs& args, void* stream);

struct BackwardArgs {
  Shape shape;
  ConstRows q, k, v, out, grad_out;
  const float* lse = nullptr;
  int64_t lse_stride = 0;
  const float* grad_lse = nullptr;  // null: zero
  int64_t grad_lse_stride = 0;
  Rows dq, dk, dv;  // every element is written
  BlockMask mask;   // words null: every block
  bool deterministic = false;
  void* workspace = nullptr;
};
int64_t backward_workspace_bytes(const BackwardArgs& args);
CudaStatus backward(const BackwardArgs& args, void* stream);

// bool [rows, key_blocks] to words [rows, BlockMask::words_of(key_blocks)] and back.
CudaStatus pack_mask(
    const uint8_t* blocks, int64_t rows, int64_t key_blocks, uint32_t* words, void* stream);
CudaStatus unpack_mask(
    const uint32_t* words, int64_t rows, int64_t key_blocks, uint8_t* blocks, void* stream);

}  // namespace longspur::kernels::block_sparse::cuda

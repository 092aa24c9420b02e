// The backward launcher for bench/block_sparse_backward_cuda.py, which calls it through ctypes with
// the pointers of torch tensors, beside torch's own attention in one process.
#include <cstdint>

#include "kernels/block_sparse/cuda/block_sparse_cuda.h"

namespace cuda = longspur::kernels::block_sparse::cuda;

extern "C" {

struct LongspurBackward {
  const void *q, *k, *v, *out, *grad_out;  // [T, heads, D] bf16
  const float* lse;                        // [H, Tq]
  void *dq, *dk, *dv;
  void* workspace;
  const int32_t* cu;      // of queries and keys
  const uint32_t* words;  // null: dense
  int64_t batch, heads, kv_heads, dim, total, longest;
  int64_t block_size, mask_heads, query_blocks, row_words;
  int32_t deterministic;
  float scale;
};

static cuda::BackwardArgs args_of(const LongspurBackward* b) {
  cuda::BackwardArgs a;
  a.shape = {b->cu,    b->cu,      b->batch,   b->heads, b->kv_heads, b->dim,           b->total,
             b->total, b->longest, b->longest, true,     b->scale,    cuda::Type::kBF16};
  const int64_t q = b->heads * b->dim, k = b->kv_heads * b->dim;
  a.q = {b->q, q, b->dim};
  a.k = {b->k, k, b->dim};
  a.v = {b->v, k, b->dim};
  a.out = {b->out, q, b->dim};
  a.grad_out = {b->grad_out, q, b->dim};
  a.lse = b->lse;
  a.lse_stride = b->total;
  a.dq = {b->dq, q, b->dim};
  a.dk = {b->dk, k, b->dim};
  a.dv = {b->dv, k, b->dim};
  if (b->words != nullptr)
    a.mask = {b->words, b->block_size, b->mask_heads, b->query_blocks, b->row_words};
  a.deterministic = b->deterministic != 0;
  a.workspace = b->workspace;
  return a;
}

int64_t longspur_backward_workspace(const LongspurBackward* b) {
  return cuda::backward_workspace_bytes(args_of(b));
}
const char* longspur_backward(const LongspurBackward* b, void* stream) {
  return cuda::backward(args_of(b), stream);
}

}  // extern "C"

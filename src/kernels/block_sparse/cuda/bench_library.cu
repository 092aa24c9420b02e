// The forward launchers for bench/block_sparse_cuda.py, which calls them through ctypes with the
// pointers of torch tensors, beside torch's own attention in one process.
#include <cstdint>

#include "kernels/block_sparse/cuda/block_sparse_cuda.h"

namespace cuda = longspur::kernels::block_sparse::cuda;

extern "C" {

struct LongspurForward {
  const void *q, *k, *v;  // [T, heads, D]
  void* out;
  float* lse;  // [H, Tq]
  void* workspace;
  const int32_t *cu_q, *cu_k;
  const uint32_t* words;  // null: dense
  const void* pool;       // null: k and v
  const int32_t* block_table;
  int64_t pages, max_blocks;
  int64_t batch, heads, kv_heads, dim, total_q, total_k, max_q, max_k;
  int64_t block_size, mask_heads, query_blocks, row_words;
  int32_t type, causal;  // type: 0 bf16, 1 fp16, 2 fp32
  float scale;
};

const char* longspur_forward(const LongspurForward* f, void* stream) {
  cuda::ForwardArgs a;
  a.shape = {f->cu_q,        f->cu_k,    f->batch,           f->heads, f->kv_heads,
             f->dim,         f->total_q, f->total_k,         f->max_q, f->max_k,
             f->causal != 0, f->scale,   cuda::Type(f->type)};
  a.q = {f->q, f->heads * f->dim, f->dim};
  a.k = {f->k, f->kv_heads * f->dim, f->dim};
  a.v = {f->v, f->kv_heads * f->dim, f->dim};
  if (f->pool != nullptr) a.paged = {f->pool, f->pages, f->block_table, f->max_blocks};
  a.out = {f->out, f->heads * f->dim, f->dim};
  a.lse = f->lse;
  a.lse_stride = f->total_q;
  if (f->words != nullptr)
    a.mask = {f->words, f->block_size, f->mask_heads, f->query_blocks, f->row_words};
  a.workspace = f->workspace;
  return cuda::forward(a, stream);
}

const char* longspur_pack_mask(
    const uint8_t* blocks, int64_t rows, int64_t key_blocks, uint32_t* words, void* stream) {
  return cuda::pack_mask(blocks, rows, key_blocks, words, stream);
}

}  // extern "C"

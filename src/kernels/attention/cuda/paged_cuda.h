// Attention over the paged cache on CUDA. A page holds 64 tokens of one KV head of one layer: K
// [64, D], then V [64, D], in the cache's type. Semantics are those of kernels/attention/paged.h.
// Pointers are device pointers, `stream` is a cudaStream_t; launchers return nullptr or an error
// text.
#pragma once

#include <cstdint>

#include "kernels/common/cuda/status.h"

namespace longspur::kernels::attention::cuda {

enum class Type { kF32, kBF16 };
inline constexpr int kPageTokens = 64;
// Keys of one piece of a decode; fixed, so that results do not depend on the batch.
inline constexpr int kSplitTokens = 128;

struct PagedCache {
  void* pool;                  // pages
  const int32_t* block_table;  // [B, G, max_blocks] of this layer
  int64_t max_blocks;
  int64_t kv_heads;  // G
  int64_t head_dim;  // D, a multiple of 8, at most 256
  Type type;
};

// Where each packed token stands.
struct TokenMap {
  const int32_t* sequence;  // [T] b
  const int32_t* position;  // [T]
  int64_t t;
};

// Rotates q and k (half-split pairs), after per-head RMSNorm when given, and stores k and v.
struct RopeAppendArgs {
  void* qkv;         // [T, (H + 2 G) D] of the cache's type
  const float* cos;  // [row, rotary_dim / 2]; a token's row is its position
  const float* sin;
  const int32_t* table_start;  // [B] added to the row, or null: one table for all sequences
  const float* q_norm;         // [D] or null
  const float* k_norm;
  float norm_eps;
  int64_t heads;  // H
  int64_t rotary_dim;
};
CudaStatus rope_append(const RopeAppendArgs& args,
                       const TokenMap& map,
                       const PagedCache& cache,
                       void* stream);

// Every token of the batch against its own cached keys, split over pages and merged.
struct DecodeArgs {
  const void* q;  // [T, ldq] of the cache's type, H heads of D at the front of a row
  int64_t ldq;
  void* out;       // [T, H D]
  float* partial;  // [T, H, splits, D + 2] scratch
  int64_t heads;
  int64_t max_kv_len;  // of the batch: decides the splits
  float scale;
  int64_t window;  // 0: none
};
int64_t decode_scratch_bytes(int64_t t, int64_t heads, int64_t head_dim, int64_t max_kv_len);
CudaStatus paged_decode(const DecodeArgs& args,
                        const TokenMap& map,
                        const PagedCache& cache,
                        void* stream);

// Copies the first `tokens` keys and values of sequence b to [tokens, G, D] (for prefill through a
// contiguous attention).
struct GatherArgs {
  int64_t sequence;
  int64_t tokens;
  void* k;  // [tokens, G, D] of the cache's type
  void* v;
};
CudaStatus gather_kv(const GatherArgs& args, const PagedCache& cache, void* stream);

}  // namespace longspur::kernels::attention::cuda

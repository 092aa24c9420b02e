// Attention over the paged key/value cache, CPU. A page holds kPageTokens tokens of one KV head of
// one layer: keys, then values. Element order inside a page is private to this family (append_kv
// writes it, paged_attention reads it): bf16 pages keep K as [D/2][64 tokens][2] and V as
// [64/2][D][2], so that both products are the same pair-wise dot-product micro-kernel with no
// horizontal sums; fp32 pages (reference arithmetic) keep K as [D][64] and V as [64][D].
//
// out[t, h] = sum_s softmax_s(scale * q[t, h] . k[s, h/(H/G)]) v[s, h/(H/G)] over the visible keys:
// the query at position p sees keys s <= p and, with window > 0, s > p - window. Statistics are
// fp32; P is rounded to bf16 for bf16 and NVFP4 pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/thread_pool.h"
#include "kernels/common/block_mask.h"

namespace longspur::kernels::attention {

inline constexpr int kPageTokens = 64;
enum class KvType { kBF16, kF32, kNVFP4 };

// kNVFP4: D is a multiple of 16, at most kMaxNvfp4Dim. A query reads block 0 and its own block in
// bf16, every other one in NVFP4. Block 0 and the newest block, while it is not full, are kept in
// bf16 with the help of kSideBlocks further pages, which each row of the block table ends with; a
// block is quantised when its last token is appended (nvfp4_page.h). rope_append rotates q and k of
// the rows once more, by a Hadamard matrix, and paged_attention reads k and v of the rows, not only
// q: the two are called in this order with the same rows.
inline constexpr int64_t kMaxNvfp4Dim = 512;
inline constexpr int64_t kSideBlocks = 7;
inline constexpr int64_t side_blocks(KvType type) {
  return type == KvType::kNVFP4 ? kSideBlocks : 0;
}

// Bytes of one page for head size D, padded inside.
int64_t page_bytes(KvType type, int64_t head_dim);

struct PagedKv {
  KvType type = KvType::kBF16;
  int64_t head_dim = 0;       // D
  int64_t kv_heads = 0;       // G
  std::byte* pool = nullptr;  // pages, 64-byte aligned
  const int32_t* block_table =
      nullptr;             // [B, G, max_blocks] page ids of this layer; -1 beyond the end
  int64_t max_blocks = 0;  // with the side_blocks, the last of each row
};

// Packed batch: sequence b owns query rows cu_seqlens[b] .. cu_seqlens[b+1] and, when these rows
// are appended, kv_lens[b] cached tokens, the last of which belong to the rows (query positions are
// kv_lens[b] - n_b + i).
struct BatchShape {
  int64_t batch = 0;                    // B
  const int32_t* cu_seqlens = nullptr;  // [B + 1]
  const int32_t* kv_lens = nullptr;     // [B]
};

// Rotates q and k in place (RoPE, half-split pairs: i with i + rotary_dim/2), and appends k and v
// to the pages. qkv rows hold q [H, D], k [G, D], v [G, D] next to each other at stride ld.
struct RopeAppendArgs {
  float* qkv = nullptr;  // [T, (H + 2G) * D]
  int64_t ld = 0;
  int64_t heads = 0;           // H
  const float* cos = nullptr;  // [max_position, rotary_dim / 2], attention factor included
  const float* sin = nullptr;
  int64_t rotary_dim = 0;
  const float* q_norm = nullptr;  // [D] or null: RMSNorm over D before the rotation (Qwen3)
  const float* k_norm = nullptr;
  float norm_eps = 0.0f;
};
void rope_append(Team& team,
                 const RopeAppendArgs& args,
                 const BatchShape& shape,
                 const PagedKv& kv);

struct AttentionArgs {
  // [T, H, D], rows at stride ldq. kNVFP4: rows of qkv, k and v follow.
  const float* q = nullptr;
  int64_t ldq = 0;
  float* out = nullptr;  // [T, H, D], rows at stride ldo
  int64_t ldo = 0;
  int64_t heads = 0;  // H, a multiple of G
  float scale = 0.0f;
  int64_t window = 0;    // 0: no window
  float* lse = nullptr;  // [T, H] or null: natural log of the sum of exponentials, -inf if empty
};

// Sparse prefill: rows of a query block read only the blocks of keys of a mask; a row that sees no
// key of them has out 0. Query blocks stand at absolute positions (multiples of kQueryBlock); row 0
// of a sequence is the block that holds its first query's position, blocks.query_blocks counts from
// there. Sequences with `use` 0 are dense, and so are those of fewer than kFewQueries queries: they
// read the cache once whatever they do with it.
struct PagedMask {
  BlockMask blocks;              // heads: H, G or 1
  const uint8_t* use = nullptr;  // [B] or null: all
  // Every block that all rows of the query block see and none reads stands for one more key: the
  // mean of its keys, as often as it has keys, with the mean of its values. lse counts it, too.
  bool mean_correction = false;
};
inline constexpr int64_t kFewQueries = 16;
inline bool is_masked(const PagedMask* mask, const BatchShape& shape, int64_t b) {
  return mask != nullptr && (mask->use == nullptr || mask->use[b] != 0) &&
         shape.cu_seqlens[b + 1] - shape.cu_seqlens[b] >= kFewQueries;
}

// Scratch for a batch: split-KV partial results, per-thread tiles. Pure. A mask takes more only
// with mean_correction.
int64_t workspace_bytes(const BatchShape& shape,
                        int64_t heads,
                        const PagedKv& kv,
                        int threads,
                        const PagedMask* mask = nullptr);

// SPMD; ends with a barrier. Work is cut into (sequence, KV head, query tile or page range) pieces
// handed out dynamically; long decodes are split over pages and merged by log-sum-exp.
void paged_attention(Team& team,
                     const AttentionArgs& args,
                     const BatchShape& shape,
                     const PagedKv& kv,
                     std::byte* workspace,
                     const PagedMask* mask = nullptr);

// The instruction set in use: "avx512bf16", "avx512", "avx2" or "portable".
std::string_view active_isa();
void limit_isa(std::string_view isa);  // for tests; throws Error on an unknown or unavailable name

// Reference: plain loops in double over the same pages, as rope_append leaves them (paged_attention
// stores a few more rows of kNVFP4); the oracle of the tests.
void paged_attention_ref(const AttentionArgs& args,
                         const BatchShape& shape,
                         const PagedKv& kv,
                         const PagedMask* mask = nullptr);

}  // namespace longspur::kernels::attention

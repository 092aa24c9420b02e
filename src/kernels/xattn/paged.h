// Scores and selection for query rows whose keys lie in the paged cache, CPU. Query blocks stand at
// absolute positions: block I holds positions 128 I .., of which a call has some rows, so that a
// prompt cut into chunks at multiples of 128 selects what it would in one piece. Groups of queries
// stand at multiples of their size too: with pooled:256 to 1024 that holds for chunks at multiples
// of the group.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/thread_pool.h"
#include "kernels/attention/paged.h"
#include "kernels/xattn/api.h"

namespace longspur::kernels::xattn {

// Means of the keys of full pages, kept beside the cache by page id, so that a later chunk does not
// read earlier keys again for the terms that need only these. Read for pages that were full before
// the call: each must have been made full by rows of a call of paged_select, or filled by the
// caller. Null: all means are taken anew.
struct KeyMeans {
  float* means = nullptr;  // [pool pages, D]
};

struct PagedSelectArgs {
  // [T, H, D] after rope_append, rows at stride ldq. kNVFP4: rows of qkv, k and v follow.
  const float* q = nullptr;
  int64_t ldq = 0;
  int64_t heads = 0;  // H
  float scale = 0.0f;
  Estimator estimator;
  const float* threshold = nullptr;  // [mask heads]; >= 2: the head's rows keep every block
  SelectOptions options;
  int64_t mask_heads = 0;  // H or G
  // [B, mask_heads, query_blocks, row_words]; query block 0 of a sequence is the one that holds its
  // first row's position. 16-byte aligned; all written.
  uint32_t* words = nullptr;
  int64_t query_blocks = 0, row_words = 0;
  // Rows that keep a smaller share of the scores than this are selected again, by kShare with it as
  // threshold.
  float least_share = 0.0f;
  RowStats* stats = nullptr;      // [B, mask_heads, query_blocks] or null
  uint8_t* reselected = nullptr;  // likewise: 1 where least_share made the row choose again
  // Null, or [T, H], rows at lse_stride: natural log-sum-exp over every visible key, of the queries
  // that the terms sampled and outlier read; others are left as they are. With the log-sum-exp of
  // the kept keys, which attention gives, the mass that a query misses is 1 - exp(kept - this).
  float* row_lse = nullptr;
  int64_t lse_stride = 0;
  KeyMeans key_means;  // written for pages that this call's rows make full; read
};

// Query blocks of the longest run of rows, at absolute positions. Pure.
int64_t paged_query_blocks(const attention::BatchShape& shape);
int64_t paged_select_workspace_bytes(const PagedSelectArgs& args,
                                     const attention::BatchShape& shape,
                                     const attention::PagedKv& kv,
                                     int threads);
// SPMD; ends with a barrier. After rope_append of the same rows.
void paged_select(Team& team,
                  const PagedSelectArgs& args,
                  const attention::BatchShape& shape,
                  const attention::PagedKv& kv,
                  std::byte* workspace);

}  // namespace longspur::kernels::xattn

// How block scores are computed on the device, in chunks of query blocks so that what is stored
// between kernels has a bound.
//
// A block row is one query block of one query head; block row ((b G + g) blocks + i) group + h is
// block first_block + i of query head g group + h. It has `rows` rows, which are those of its terms
// one after the other: terms against exact keys first. Of each row `masses` holds the log2 of the
// attention mass of every key block up to the row's limit: how many columns it sees, which are keys
// (exact terms), groups of keys (strided terms) or key blocks (block means). `mean` has 128 rows a
// block that are never stored, only their mean probabilities.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/xattn/cuda/xattn_cuda.h"

namespace longspur::kernels::xattn::cuda {

struct TermPlan {
  Term term;
  int size;         // S or G
  int first, rows;  // of a block row's rows; 0 rows: kMean
  float weight;     // of all terms: 1
  bool bias;
};

struct Work {  // a piece of a product, of the list that list_work() writes
  int group;   // b G + g
  int unit;    // row tile
  int column, columns;
};

struct ScorePlan {
  const int32_t *cu_q, *cu_k;
  int batch, heads, kv_heads, group;  // group: H / G
  int dim, block;                     // D, keys a block
  bool causal;
  float scale, scale2;  // of logits; times log2 e
  int64_t total_q, total_k;
  int max_k;
  const void *q, *k;
  int64_t q_token, q_head, k_token, k_head;

  TermPlan terms[kMaxTerms];
  int term_count, rows, exact_rows;
  bool has_mean, has_block_mean, has_bias;
  float mean_weight;
  bool fast;  // the tensor cores' kernels, else the simple ones

  int query_blocks, key_blocks, score_heads;
  int pitch;                // of a row of masses
  int chunk;                // query blocks a chunk
  int first_block, blocks;  // this chunk
  int norm_pitch;           // of a KV head's norms

  float* scores;       // [B, score_heads, query_blocks, key_blocks]
  float* masses;       // [block rows, rows, pitch]
  int32_t* limits;     // [block rows, rows]
  float* bias;         // [block rows, exact_rows], log2 units a squared key norm
  void* x;             // [block rows, exact_rows, D]: fast: of the operands' type, else fp32
  float* q_means;      // [block rows, D]
  float* norms;        // [B G, norm_pitch]: squared norms of keys
  float* key_means;    // [B G, key_blocks, D]
  void* key_means16;   // the same, of the operands' type
  float* mean_scores;  // [block rows, pitch]
  int* work_count;
  Work* work;
  int64_t work_capacity;

  __host__ __device__ int64_t block_rows() const { return int64_t(batch) * heads * blocks; }
};

// Fills a plan; returns the bytes of its workspace, which starts at args.workspace.
int64_t make_plan(const ScoreArgs& args, ScorePlan& plan);

// The steps of a chunk; launched in this order.
cudaError_t run_key_summaries(const ScorePlan& plan, Type type, cudaStream_t stream);  // once
cudaError_t run_rows(const ScorePlan& plan, Type type, cudaStream_t stream);
cudaError_t run_simple_masses(const ScorePlan& plan, Type type, cudaStream_t stream);
cudaError_t run_block_means(const ScorePlan& plan, cudaStream_t stream);
cudaError_t run_simple_mean(const ScorePlan& plan, Type type, cudaStream_t stream);
cudaError_t run_combine(const ScorePlan& plan, cudaStream_t stream);

// The strided term's last groups, where they are not whole: the rest is up to run_strided().
cudaError_t run_strided_edges(const ScorePlan& plan, int term, Type type, cudaStream_t stream);

// sm_90a; plans whose `fast` is true.
cudaError_t run_strided(const ScorePlan& plan, int term, Type type, cudaStream_t stream);
cudaError_t run_exact(const ScorePlan& plan, Type type, cudaStream_t stream);
cudaError_t run_mean(const ScorePlan& plan, Type type, cudaStream_t stream);
int64_t strided_work_capacity(const ScorePlan& plan, int size);
int64_t exact_work_capacity(const ScorePlan& plan);

}  // namespace longspur::kernels::xattn::cuda

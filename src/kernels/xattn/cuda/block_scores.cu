// The plan of block scores, and its kernels one after the other.
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/common/cuda/status.cuh"
#include "kernels/common/cuda/tensor_map.h"
#include "kernels/xattn/cuda/score_plan.h"

namespace longspur::kernels::xattn::cuda {

namespace {

// Of the masses of a chunk. Larger chunks leave fewer ends of launches where multiprocessors idle.
constexpr int64_t kMassBytes = int64_t{512} << 20;
constexpr float kLog2E = 1.44269504088896341f;

bool is_exact(Term term) {
  return term == Term::kPooled || term == Term::kSampled || term == Term::kOutlier;
}
bool is_strided(Term term) { return term == Term::kAntidiagonal || term == Term::kDiagonal; }

int rows_of(const EstimatorTerm& term) {
  if (term.term == Term::kMean) return 0;
  if (term.term == Term::kOutlier || term.term == Term::kBlockMean) return 1;
  return int(std::max<int64_t>(kQueryBlock / term.size, 1));
}

bool is_aligned(const void* data, int64_t token_stride, int64_t head_stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && token_stride % 8 == 0 &&
         head_stride % 8 == 0 && token_stride > 0 && head_stride > 0;
}

bool is_fast(const ScoreArgs& args) {
  return args.type != Type::kF32 && (args.head_dim == 64 || args.head_dim == 128) &&
         is_aligned(args.q, args.q_token_stride, args.q_head_stride) &&
         is_aligned(args.k, args.k_token_stride, args.k_head_stride) && encode_tiled() != nullptr;
}

// Exact terms first, so that their rows are those of one matrix.
void plan_terms(const Estimator& estimator, ScorePlan& p) {
  double sum = 0;
  for (const EstimatorTerm& term : estimator.terms) sum += term.weight;
  for (const bool exact : {true, false}) {
    for (const EstimatorTerm& term : estimator.terms) {
      if (is_exact(term.term) != exact) continue;
      const auto weight = float(term.weight / sum);
      p.terms[p.term_count++] = {term.term, int(term.size),
                                 p.rows,    rows_of(term),
                                 weight,    term.term == Term::kPooled && term.norm_bias};
      p.rows += rows_of(term);
      if (exact) p.exact_rows = p.rows;
      p.has_bias = p.has_bias || (term.term == Term::kPooled && term.norm_bias);
      p.has_block_mean = p.has_block_mean || term.term == Term::kBlockMean;
      p.has_mean = p.has_mean || term.term == Term::kMean;
      p.mean_weight += term.term == Term::kMean ? weight : 0.0f;
    }
  }
}

// Hands out parts of the workspace, 256-byte aligned.
class Parts {
 public:
  explicit Parts(void* workspace) : base_(static_cast<std::byte*>(workspace)) {}
  template <class T>
  void take(T*& part, int64_t bytes) {
    part = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += round_up(bytes, 256);
  }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* base_;
  int64_t bytes_ = 0;
};

int64_t take_parts(const ScoreArgs& args, ScorePlan& p) {
  const int64_t rows = int64_t(p.batch) * p.heads * p.chunk, groups = int64_t(p.batch) * p.kv_heads;
  const bool means = p.has_mean || p.has_block_mean;
  Parts parts(args.workspace);
  parts.take(p.masses, rows * p.rows * p.pitch * 4);
  parts.take(p.limits, rows * p.rows * 4);
  parts.take(p.bias, p.has_bias ? rows * p.exact_rows * 4 : 0);
  parts.take(p.x, rows * p.exact_rows * p.dim * (p.fast ? 2 : 4));
  parts.take(p.q_means, p.has_block_mean ? rows * p.dim * 4 : 0);
  parts.take(p.norms, p.has_bias ? groups * p.norm_pitch * 4 : 0);
  parts.take(p.key_means, means ? groups * p.key_blocks * p.dim * 4 : 0);
  parts.take(p.key_means16, p.has_mean && p.fast ? groups * p.key_blocks * p.dim * 2 : 0);
  parts.take(p.mean_scores, p.has_mean ? rows * p.pitch * 4 : 0);
  parts.take(p.work_count, p.fast ? 256 : 0);
  parts.take(p.work, p.work_capacity * int64_t(sizeof(Work)));
  return parts.bytes();
}

CudaStatus check(const ScoreArgs& args) {
  if (args.estimator.terms.empty() || args.estimator.terms.size() > size_t(kMaxTerms))
    return "xattn block scores: an estimator has 1 to 8 terms";
  if (args.block_size != 64 && args.block_size != 128)
    return "xattn block scores: a key block has 64 or 128 keys";
  if (args.score_heads != args.heads && args.score_heads != args.kv_heads)
    return "xattn block scores: one score a query head or a KV head";
  if (args.total_q > INT32_MAX || args.total_k > INT32_MAX)
    return "xattn block scores: more than 2^31 tokens";
  return nullptr;
}

cudaError_t run_terms(const ScorePlan& p, Type type, cudaStream_t s) {
  if (!p.fast) {
    if (const cudaError_t error = run_simple_masses(p, type, s)) return error;
    if (p.has_mean) return run_simple_mean(p, type, s);
    return cudaSuccess;
  }
  if (p.exact_rows > 0) {
    if (const cudaError_t error = run_exact(p, type, s)) return error;
  }
  for (int i = 0; i < p.term_count; ++i) {
    if (!is_strided(p.terms[i].term)) continue;
    if (const cudaError_t error = run_strided(p, i, type, s)) return error;
    if (const cudaError_t error = run_strided_edges(p, i, type, s)) return error;
  }
  return p.has_mean ? run_mean(p, type, s) : cudaSuccess;
}

cudaError_t run_chunk(const ScorePlan& p, Type type, cudaStream_t s) {
  if (const cudaError_t error = run_rows(p, type, s)) return error;
  if (const cudaError_t error = run_terms(p, type, s)) return error;
  if (const cudaError_t error = run_block_means(p, s)) return error;
  return run_combine(p, s);
}

}  // namespace

int64_t make_plan(const ScoreArgs& args, ScorePlan& p) {
  p = {};
  p.cu_q = args.cu_seqlens_q;
  p.cu_k = args.cu_seqlens_k;
  p.batch = int(args.batch);
  p.heads = int(args.heads);
  p.kv_heads = int(args.kv_heads);
  p.group = int(args.heads / std::max<int64_t>(args.kv_heads, 1));
  p.dim = int(args.head_dim);
  p.block = int(args.block_size);
  p.causal = args.causal;
  p.scale = args.scale;
  p.scale2 = args.scale * kLog2E;
  p.total_q = args.total_q;
  p.total_k = args.total_k;
  p.max_k = int(args.max_seqlen_k);
  p.q = args.q;
  p.k = args.k;
  p.q_token = args.q_token_stride;
  p.q_head = args.q_head_stride;
  p.k_token = args.k_token_stride;
  p.k_head = args.k_head_stride;
  p.query_blocks = int(args.query_blocks);
  p.key_blocks = int(args.key_blocks);
  p.score_heads = int(args.score_heads);
  p.scores = args.scores;
  p.fast = is_fast(args);
  plan_terms(args.estimator, p);
  p.pitch = int(round_up(args.key_blocks, 8));
  p.norm_pitch = int(round_up(args.key_blocks * args.block_size, 128));
  const int64_t block_bytes = args.batch * args.heads * std::max(p.rows, 1) * p.pitch * 4;
  p.chunk = int(std::clamp<int64_t>(kMassBytes / std::max<int64_t>(block_bytes, 1), 1,
                                    std::max<int64_t>(args.query_blocks, 1)));
  // Strided terms have tiles of 128 rows, at most 64 query blocks.
  if (p.chunk > 64 && p.chunk < p.query_blocks) p.chunk = p.chunk / 64 * 64;
  p.blocks = p.chunk;
  if (p.fast) {
    if (p.exact_rows > 0) p.work_capacity = exact_work_capacity(p);
    for (int i = 0; i < p.term_count; ++i) {
      if (is_strided(p.terms[i].term))
        p.work_capacity = std::max(p.work_capacity, strided_work_capacity(p, p.terms[i].size));
    }
  }
  return take_parts(args, p);
}

int64_t block_scores_workspace_bytes(const ScoreArgs& args) {
  ScorePlan plan;
  return check(args) == nullptr ? make_plan(args, plan) : 0;
}

CudaStatus block_scores(const ScoreArgs& args, void* stream) {
  if (const CudaStatus status = check(args)) return status;
  if (args.batch * args.heads * args.query_blocks * args.key_blocks == 0) return nullptr;
  ScorePlan plan;
  make_plan(args, plan);
  const auto s = static_cast<cudaStream_t>(stream);
  cudaError_t error = run_key_summaries(plan, args.type, s);
  for (int block = 0; block < plan.query_blocks && error == cudaSuccess; block += plan.chunk) {
    plan.first_block = block;
    plan.blocks = std::min(plan.chunk, plan.query_blocks - block);
    error = run_chunk(plan, args.type, s);
  }
  return error == cudaSuccess ? launch_status() : cudaGetErrorString(error);
}

}  // namespace longspur::kernels::xattn::cuda

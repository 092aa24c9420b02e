// Scores and selection on the CPU: kernels/xattn on torch's threads; and, for devices without
// kernels of their own, the same after a copy.
#include <ATen/ops/empty_like.h>

#include "base/aligned_buffer.h"
#include "base/shape.h"
#include "ops/attention_cpu.h"
#include "ops/block_words.h"
#include "ops/parallel.h"
#include "ops/xattn_impl.h"

namespace longspur::ops {

namespace {

namespace kernel = kernels::xattn;

constexpr int64_t kRowsAnItem = 64;

bool scores_on_cpu(const XattnScoreProblem& problem) { return problem.scores.device().is_cpu(); }
bool select_on_cpu(const XattnSelectProblem& problem) { return problem.scores.device().is_cpu(); }

void cpu_scores(const XattnScoreProblem& problem) {
  kernel::ScoreArgs args;
  args.shape = varlen_shape(problem.operands);
  args.q = varlen_rows(problem.operands.q);
  args.k = varlen_rows(problem.operands.k);
  args.estimator = problem.estimator;
  args.block_size = problem.block_size;
  args.scores = problem.scores.mutable_data_ptr<float>();
  args.score_heads = problem.scores.size(1);
  args.query_blocks = problem.scores.size(2);
  args.key_blocks = problem.scores.size(3);
  if (!attention_fits_cpu_tiles(problem.operands)) {
    kernel::block_scores_ref(args);
    return;
  }
  const kernel::BlockScores scores(args);
  AlignedBuffer workspace{static_cast<size_t>(scores.workspace_bytes())};
  for (int phase = 0; phase < kernel::BlockScores::kPhases; ++phase) {
    for_each_item(scores.items(phase), scores.scratch_bytes(),
                  [&](int64_t item, std::byte* scratch) {
                    scores.run(phase, item, scratch, workspace.data());
                  });
  }
}

void cpu_select(const XattnSelectProblem& problem) {
  const kernel::SelectArgs args = xattn_select_args(problem);
  const int64_t rows = args.batch * args.heads * args.query_blocks;
  for_each_item(ceil_div(rows, kRowsAnItem), 0, [&](int64_t item, std::byte*) {
    const int64_t begin = item * kRowsAnItem;
    kernel::select(args, begin, begin + kRowsAnItem < rows ? begin + kRowsAnItem : rows);
  });
}

bool any_scores(const XattnScoreProblem&) { return true; }
bool any_select(const XattnSelectProblem&) { return true; }

void host_scores(const XattnScoreProblem& problem) {
  XattnScoreProblem host = problem;
  host.operands.q = problem.operands.q.to(at::kCPU);
  host.operands.k = problem.operands.k.to(at::kCPU);
  host.scores = at::empty_like(problem.scores, problem.scores.options().device(at::kCPU));
  cpu_scores(host);
  problem.scores.copy_(host.scores);
}

void host_select(const XattnSelectProblem& problem) {
  XattnSelectProblem host = problem;
  host.scores = problem.scores.to(at::kCPU);
  host.threshold = problem.threshold.to(at::kCPU);
  host.words = at::empty_like(problem.words, problem.words.options().device(at::kCPU));
  if (problem.stats.defined())
    host.stats = at::empty_like(problem.stats, problem.stats.options().device(at::kCPU));
  cpu_select(host);
  problem.words.copy_(host.words);
  if (problem.stats.defined()) problem.stats.copy_(host.stats);
}

}  // namespace

// The pointers of cu_seqlens are the host's.
kernels::xattn::SelectArgs xattn_select_args(const XattnSelectProblem& problem) {
  kernel::SelectArgs args;
  args.scores = problem.scores.const_data_ptr<float>();
  args.threshold = problem.threshold.const_data_ptr<float>();
  args.cu_seqlens_q = problem.host_seqlens_q.const_data_ptr<int32_t>();
  args.cu_seqlens_k = problem.host_seqlens_k.const_data_ptr<int32_t>();
  args.batch = problem.scores.size(0);
  args.heads = problem.scores.size(1);
  args.query_blocks = problem.scores.size(2);
  args.key_blocks = problem.scores.size(3);
  args.options = problem.options;
  args.words = mutable_words(problem.words);
  static_assert(sizeof(kernel::RowStats) == 3 * sizeof(int32_t));
  if (problem.stats.defined())
    args.stats = static_cast<kernel::RowStats*>(problem.stats.mutable_data_ptr());
  return args;
}

const XattnImplementation kXattnCpu = {"cpu", scores_on_cpu, cpu_scores, select_on_cpu, cpu_select};
const XattnImplementation kXattnHost = {"host", any_scores, host_scores, any_select, host_select};

}  // namespace longspur::ops

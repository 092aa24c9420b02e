// What scoring costs beside dense attention:
//   xattn_bench [tokens [heads kv_heads head_dim [threads]]]
// Best of several runs in turns, bf16; first checks that every row of scores adds up to 1.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/error.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/thread_pool.h"
#include "kernels/attention/paged.h"
#include "kernels/attention/varlen.h"
#include "kernels/xattn/api.h"

namespace longspur::kernels::xattn {
namespace {

struct Shape {
  int64_t tokens = 8192, heads = 9, kv_heads = 3, head_dim = 64;
  int threads = 1;
};

std::vector<uint16_t> random_bf16(uint64_t seed, int64_t n) {
  std::vector<uint16_t> values;
  for (int64_t i = 0; i < n; ++i)
    values.push_back(float_to_bf16(4.0f * uniform01(philox4x32(seed, 0, uint64_t(i))[0]) - 2.0f));
  return values;
}

double seconds(const std::function<void()>& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

class Bench {
 public:
  explicit Bench(const Shape& shape)
      : shape_(shape),
        pool_(shape.threads),
        q_(random_bf16(1, shape.tokens * shape.heads * shape.head_dim)),
        k_(random_bf16(2, shape.tokens * shape.kv_heads * shape.head_dim)),
        v_(random_bf16(3, shape.tokens * shape.kv_heads * shape.head_dim)),
        out_(q_.size()),
        lse_(size_t(shape.tokens * shape.heads)),
        cu_{0, int32_t(shape.tokens)} {
    varlen_.cu_seqlens_q = varlen_.cu_seqlens_k = cu_;
    varlen_.batch = 1;
    varlen_.heads = shape.heads;
    varlen_.kv_heads = shape.kv_heads;
    varlen_.head_dim = shape.head_dim;
    varlen_.scale = 1.0 / std::sqrt(double(shape.head_dim));
    varlen_.dtype = DType::kBF16;
  }

  void dense() {
    attention::VarlenForwardArgs args;
    args.shape = varlen_;
    args.q = rows(q_, shape_.heads);
    args.k = rows(k_, shape_.kv_heads);
    args.v = rows(v_, shape_.kv_heads);
    args.out = {out_.data(), shape_.heads * shape_.head_dim, shape_.head_dim};
    args.lse = lse_.data();
    args.lse_stride = shape_.tokens;
    const attention::VarlenForward forward(args);
    pool_.run([&](Team& team) {
      AlignedBuffer scratch(size_t(forward.scratch_bytes()));
      team.dynamic_for(forward.items(), 1,
                       [&](int64_t item, int64_t) { forward.run(item, scratch.data()); });
    });
  }

  void score(const char* estimator, int64_t block_size) {
    ScoreArgs args;
    args.shape = varlen_;
    args.q = rows(q_, shape_.heads);
    args.k = rows(k_, shape_.kv_heads);
    args.estimator = parse_estimator(estimator, 16, block_size, shape_.tokens);
    args.block_size = block_size;
    args.score_heads = shape_.heads;
    args.query_blocks = ceil_div(shape_.tokens, kQueryBlock);
    args.key_blocks = ceil_div(shape_.tokens, block_size);
    scores_.resize(size_t(args.score_heads * args.query_blocks * args.key_blocks));
    args.scores = scores_.data();
    const BlockScores scores(args);
    workspace_ = AlignedBuffer(size_t(scores.workspace_bytes()));
    pool_.run([&](Team& team) {
      AlignedBuffer scratch(size_t(scores.scratch_bytes()));
      for (int phase = 0; phase < BlockScores::kPhases; ++phase)
        team.dynamic_for(scores.items(phase), 1, [&](int64_t item, int64_t) {
          scores.run(phase, item, scratch.data(), workspace_.data());
        });
    });
    key_blocks_ = args.key_blocks;
  }

  void check() const {
    for (size_t r = 0; r < scores_.size(); r += size_t(key_blocks_)) {
      double sum = 0.0;
      for (size_t j = 0; j < size_t(key_blocks_); ++j) sum += double(scores_[r + j]);
      require(std::fabs(sum - 1.0) < 1e-4, "row of scores: found the sum ", sum, ", expected 1");
    }
  }

  double select() {
    const std::vector<float> threshold(size_t(shape_.heads), 0.9f);
    SelectArgs args;
    args.scores = scores_.data();
    args.threshold = threshold.data();
    args.cu_seqlens_q = args.cu_seqlens_k = cu_;
    args.batch = 1;
    args.heads = shape_.heads;
    args.query_blocks = ceil_div(shape_.tokens, kQueryBlock);
    args.key_blocks = key_blocks_;
    args.options.block_size = ceil_div(shape_.tokens, key_blocks_) > 64 ? 128 : 64;
    const int64_t all = args.heads * args.query_blocks;
    std::vector<uint32_t> words(size_t(all * BlockMask::words_of(key_blocks_)));
    args.words = words.data();
    return seconds([&] { xattn::select(args, 0, all); });
  }

 private:
  attention::ConstRows rows(const std::vector<uint16_t>& values, int64_t heads) const {
    return {values.data(), heads * shape_.head_dim, shape_.head_dim};
  }

  Shape shape_;
  ThreadPool pool_;
  std::vector<uint16_t> q_, k_, v_, out_;
  std::vector<float> lse_, scores_;
  int32_t cu_[2];
  attention::VarlenShape varlen_;
  AlignedBuffer workspace_;
  int64_t key_blocks_ = 0;
};

void run(const Shape& shape) {
  constexpr int kRuns = 5;
  Bench bench(shape);
  std::printf("T %ld, H %ld, G %ld, D %ld, bf16, %d threads, %s\n", long(shape.tokens),
              long(shape.heads), long(shape.kv_heads), long(shape.head_dim), shape.threads,
              std::string(attention::active_isa()).c_str());
  for (const char* estimator :
       {"sampled:16", "antidiagonal:16", "antidiagonal:8", "pooled:128+sampled:128+mean",
        "pooled:64+sampled:64+mean", "outlier", "block_mean"}) {
    double dense = 1e30, score = 1e30, select = 1e30;
    for (int i = 0; i < kRuns; ++i) {
      score = std::min(score, seconds([&] { bench.score(estimator, 128); }));
      select = std::min(select, bench.select());
      if (i < 2) dense = std::min(dense, seconds([&] { bench.dense(); }));
    }
    bench.check();
    std::printf("%-30s scores %8.2f ms, selection %6.3f ms, dense %8.1f ms: 1/%.1f\n", estimator,
                score * 1e3, select * 1e3, dense * 1e3, dense / (score + select));
  }
}

}  // namespace
}  // namespace longspur::kernels::xattn

int main(int argc, char** argv) {
  longspur::kernels::xattn::Shape shape;
  if (argc > 1) shape.tokens = std::atol(argv[1]);
  if (argc > 4) {
    shape.heads = std::atol(argv[2]);
    shape.kv_heads = std::atol(argv[3]);
    shape.head_dim = std::atol(argv[4]);
  }
  if (argc > 5) shape.threads = std::atoi(argv[5]);
  longspur::kernels::xattn::run(shape);
}

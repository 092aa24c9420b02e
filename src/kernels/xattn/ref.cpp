// Reference of the scores: the formulas of estimator.h one logit at a time, in double.
#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "base/shape.h"
#include "kernels/xattn/api.h"

namespace longspur::kernels::xattn {

namespace {

using Row = std::vector<double>;
using Matrix = std::vector<Row>;

double load(const void* data, int64_t i, DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return static_cast<const double*>(data)[i];
    case DType::kF32:
      return double(static_cast<const float*>(data)[i]);
    case DType::kBF16:
      return double(bf16_to_float(static_cast<const uint16_t*>(data)[i]));
    case DType::kF16:
      return double(fp16_to_float(static_cast<const uint16_t*>(data)[i]));
    default:
      throw InternalError(concat("xattn: dtype ", dtype_info(dtype).name));
  }
}

// Rows [begin, end) of one head.
Matrix load_rows(const attention::ConstRows& rows,
                 DType dtype,
                 int64_t head,
                 int64_t begin,
                 int64_t end,
                 int64_t d) {
  Matrix matrix;
  for (int64_t token = begin; token < end; ++token) {
    const int64_t at = token * rows.token_stride + head * rows.head_stride;
    Row row;
    for (int64_t i = 0; i < d; ++i) row.push_back(load(rows.data, at + i, dtype));
    matrix.push_back(row);
  }
  return matrix;
}

double dot(const Row& a, const Row& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

Row mean_row(const Matrix& rows, int64_t begin, int64_t end) {
  Row mean(rows[size_t(begin)].size(), 0.0);
  for (int64_t r = begin; r < end; ++r) {
    for (size_t i = 0; i < mean.size(); ++i) mean[i] += rows[size_t(r)][i] / double(end - begin);
  }
  return mean;
}

double squared_distance(const Row& a, const Row& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

// One sequence and query head.
struct Head {
  Matrix q, k, k_means;  // [n, D], [m, D], [key blocks, D]
  int64_t n, m, block_size;
  double scale;
  bool causal;

  int64_t position(int64_t row) const { return m - n + row; }
  // Keys that row r sees, or groups of `size` keys whose first one it sees.
  int64_t visible(int64_t row, int64_t size = 1) const {
    const int64_t all = ceil_div(m, size);
    if (!causal) return all;
    return position(row) < 0 ? 0 : std::min(position(row) / size + 1, all);
  }
  int64_t block_begin(int64_t i) const { return i * kQueryBlock; }
  int64_t block_end(int64_t i) const { return std::min(n, (i + 1) * kQueryBlock); }
};

// The mean over rows of a term in one query block.
class BlockRow {
 public:
  explicit BlockRow(int64_t key_blocks) : sums_(size_t(key_blocks), 0.0) {}

  // Softmax of one row, whose logits stand for `keys` keys each; no logit: not a live row.
  void add(const Row& logits, int64_t keys, int64_t block_size) {
    if (logits.empty()) return;
    ++live_;
    const double max = *std::max_element(logits.begin(), logits.end());
    double sum = 0.0;
    for (const double z : logits) sum += std::exp(z - max);
    for (size_t c = 0; c < logits.size(); ++c)
      sums_[size_t(int64_t(c) * keys / block_size)] += std::exp(logits[c] - max) / sum;
  }
  Row mean() const {
    Row mean = sums_;
    for (double& x : mean) x /= double(std::max<int64_t>(live_, 1));
    return mean;
  }

 private:
  Row sums_;
  int64_t live_ = 0;
};

void strided(const Head& head, const EstimatorTerm& term, int64_t i, BlockRow& to) {
  const int64_t size = term.size;
  for (int64_t r = head.block_begin(i) / size; r * size < head.block_end(i); ++r) {
    const int64_t last = std::min(r * size + size, head.n) - 1;
    Row logits;
    for (int64_t c = 0; c < head.visible(last, size); ++c) {
      double sum = 0.0;
      for (int64_t s = 0; s < size; ++s) {
        const int64_t query = r * size + (term.term == Term::kDiagonal ? s : size - 1 - s);
        const int64_t key = c * size + s;
        if (query < head.n && key < head.m) sum += dot(head.q[size_t(query)], head.k[size_t(key)]);
      }
      logits.push_back(sum * head.scale / double(size));
    }
    to.add(logits, size, head.block_size);
  }
}

void pooled(const Head& head, const EstimatorTerm& term, int64_t i, BlockRow& to) {
  const VisibleBlocks blocks = visible_blocks(i, head.n, head.m, head.block_size, head.causal);
  for (int64_t g = head.block_begin(i) / term.size; g * term.size < head.block_end(i); ++g) {
    const int64_t begin = g * term.size, end = std::min(begin + term.size, head.n);
    const Row mean = mean_row(head.q, begin, end);
    double variance = 0.0;
    for (int64_t r = begin; r < end; ++r)
      variance += squared_distance(head.q[size_t(r)], mean) / double(end - begin);
    variance /= double(mean.size());
    const double bias = term.norm_bias ? 0.25 * variance * head.scale * head.scale : 0.0;
    Row logits;
    for (int64_t j = 0; j < std::min(head.visible(end - 1), blocks.end * head.block_size); ++j) {
      const Row& key = head.k[size_t(j)];
      logits.push_back(dot(mean, key) * head.scale + bias * dot(key, key));
    }
    to.add(logits, 1, head.block_size);
  }
}

// Exact query r.
void exact(const Head& head, int64_t r, BlockRow& to) {
  Row logits;
  for (int64_t j = 0; j < head.visible(r); ++j)
    logits.push_back(dot(head.q[size_t(r)], head.k[size_t(j)]) * head.scale);
  to.add(logits, 1, head.block_size);
}

void sampled(const Head& head, const EstimatorTerm& term, int64_t i, BlockRow& to) {
  for (int64_t g = head.block_begin(i) / term.size; g * term.size < head.block_end(i); ++g)
    exact(head, std::min(g * term.size + term.size / 2, head.n - 1), to);
}

void outlier(const Head& head, int64_t i, BlockRow& to) {
  const Row mean = mean_row(head.q, head.block_begin(i), head.block_end(i));
  int64_t farthest = head.block_begin(i);
  double best = -1.0;
  for (int64_t r = head.block_begin(i); r < head.block_end(i); ++r) {
    const double distance = squared_distance(head.q[size_t(r)], mean);
    if (distance > best) farthest = r;
    best = std::max(best, distance);
  }
  exact(head, farthest, to);
}

// A query at row r's position against the means of key blocks.
void against_means(const Head& head, const Row& query, int64_t r, BlockRow& to) {
  Row logits;
  for (int64_t j = 0; j < head.visible(r, head.block_size); ++j)
    logits.push_back(dot(query, head.k_means[size_t(j)]) * head.scale);
  to.add(logits, head.block_size, head.block_size);
}

Row term_row(const Head& head, const EstimatorTerm& term, int64_t i) {
  BlockRow row(ceil_div(head.m, head.block_size));
  switch (term.term) {
    case Term::kAntidiagonal:
    case Term::kDiagonal:
      strided(head, term, i, row);
      break;
    case Term::kPooled:
      pooled(head, term, i, row);
      break;
    case Term::kSampled:
      sampled(head, term, i, row);
      break;
    case Term::kOutlier:
      outlier(head, i, row);
      break;
    case Term::kMean:
      for (int64_t r = head.block_begin(i); r < head.block_end(i); ++r)
        against_means(head, head.q[size_t(r)], r, row);
      break;
    case Term::kBlockMean:
      against_means(head, mean_row(head.q, head.block_begin(i), head.block_end(i)),
                    head.block_end(i) - 1, row);
      break;
  }
  return row.mean();
}

Head load_head(const ScoreArgs& args, int64_t b, int64_t h) {
  const attention::VarlenShape& shape = args.shape;
  Head head{};
  head.n = shape.cu_seqlens_q[b + 1] - shape.cu_seqlens_q[b];
  head.m = shape.cu_seqlens_k[b + 1] - shape.cu_seqlens_k[b];
  head.block_size = args.block_size;
  head.scale = shape.scale;
  head.causal = shape.causal;
  head.q = load_rows(args.q, shape.dtype, h, shape.cu_seqlens_q[b], shape.cu_seqlens_q[b + 1],
                     shape.head_dim);
  head.k = load_rows(args.k, shape.dtype, h / (shape.heads / shape.kv_heads), shape.cu_seqlens_k[b],
                     shape.cu_seqlens_k[b + 1], shape.head_dim);
  for (int64_t begin = 0; begin < head.m; begin += args.block_size)
    head.k_means.push_back(mean_row(head.k, begin, std::min(begin + args.block_size, head.m)));
  return head;
}

}  // namespace

void block_scores_ref(const ScoreArgs& args) {
  const int64_t batch = args.shape.batch, a_mask = args.shape.heads / args.score_heads;
  const int64_t size = args.query_blocks * args.key_blocks;
  double weights = 0.0;
  for (const EstimatorTerm& term : args.estimator.terms) weights += term.weight;
  Row sums(size_t(batch * args.score_heads * size), 0.0);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < args.shape.heads; ++h) {
      const Head head = load_head(args, b, h);
      for (int64_t i = 0; i * kQueryBlock < head.n; ++i) {
        const int64_t at = (b * args.score_heads + h / a_mask) * size + i * args.key_blocks;
        for (const EstimatorTerm& term : args.estimator.terms) {
          const Row row = term_row(head, term, i);
          for (size_t j = 0; j < row.size(); ++j)
            sums[size_t(at) + j] += term.weight / weights * row[j] / double(a_mask);
        }
      }
    }
  }
  for (size_t j = 0; j < sums.size(); ++j) args.scores[j] = float(sums[j]);
}

}  // namespace longspur::kernels::xattn

// Reference of the attention over packed sequences: one query row and one head at a time, every
// product and sum in double.
#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "kernels/attention/varlen.h"

namespace longspur::kernels::attention {

namespace {

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
      throw InternalError(concat("attention: dtype ", dtype_info(dtype).name));
  }
}

void store(void* data, int64_t i, DType dtype, double value) {
  switch (dtype) {
    case DType::kF64:
      static_cast<double*>(data)[i] = value;
      return;
    case DType::kF32:
      static_cast<float*>(data)[i] = float(value);
      return;
    case DType::kBF16:
      static_cast<uint16_t*>(data)[i] = float_to_bf16(float(value));
      return;
    case DType::kF16:
      static_cast<uint16_t*>(data)[i] = float_to_fp16(float(value));
      return;
    default:
      throw InternalError(concat("attention: dtype ", dtype_info(dtype).name));
  }
}

DType lse_type(DType dtype) { return dtype == DType::kF64 ? DType::kF64 : DType::kF32; }

using Vector = std::vector<double>;

struct Score {
  int64_t key;
  double value;
};

// One sequence and one query head, as [N, D] and [S, D] in double.
class Head {
 public:
  Head(const VarlenShape& shape, const BlockMask& mask, int64_t b, int64_t head)
      : shape_(shape),
        mask_(mask),
        sequence_(b),
        q_begin_(shape.cu_seqlens_q[b]),
        k_begin_(shape.cu_seqlens_k[b]),
        n_(shape.cu_seqlens_q[b + 1] - q_begin_),
        s_(shape.cu_seqlens_k[b + 1] - k_begin_),
        head_(head),
        kv_head_(head / (shape.heads / shape.kv_heads)) {}

  int64_t queries() const { return n_; }
  int64_t q_begin() const { return q_begin_; }

  // Keys that query i sees are those of listed blocks in [0, visible(i)).
  int64_t visible(int64_t i) const {
    return shape_.causal ? std::clamp<int64_t>(i + 1 + s_ - n_, 0, s_) : s_;
  }

  bool lists(int64_t i, int64_t j) const {
    if (mask_.words == nullptr) return true;
    const uint32_t* row = mask_.row(sequence_, head_ * mask_.heads / shape_.heads, i / kQueryBlock);
    return has_block(row, j / mask_.block_size);
  }

  Vector query(const ConstRows& rows, int64_t i) const { return row(rows, q_begin_ + i, head_); }
  Vector key(const ConstRows& rows, int64_t j) const { return row(rows, k_begin_ + j, kv_head_); }

  void store_query(const Rows& rows, int64_t i, const Vector& values) const {
    const int64_t at = (q_begin_ + i) * rows.token_stride + head_ * rows.head_stride;
    for (size_t d = 0; d < values.size(); ++d)
      store(rows.data, at + int64_t(d), shape_.dtype, values[d]);
  }

  // Scores of query i, natural units, and their log-sum-exp.
  std::vector<Score> scores(const ConstRows& q, const ConstRows& k, int64_t i, double& lse) const {
    const Vector query_row = query(q, i);
    std::vector<Score> scores;
    double max = -HUGE_VAL;
    for (int64_t j = 0; j < visible(i); ++j) {
      if (!lists(i, j)) continue;
      scores.push_back({j, shape_.scale * dot(query_row, key(k, j))});
      max = std::max(max, scores.back().value);
    }
    double sum = 0.0;
    for (const Score& s : scores) sum += std::exp(s.value - max);
    lse = scores.empty() ? -HUGE_VAL : max + std::log(sum);
    return scores;
  }

  static double dot(const Vector& a, const Vector& b) {
    double sum = 0.0;
    for (size_t d = 0; d < a.size(); ++d) sum += a[d] * b[d];
    return sum;
  }
  static void add(Vector& to, double factor, const Vector& x) {
    for (size_t d = 0; d < to.size(); ++d) to[d] += factor * x[d];
  }
  Vector zeros() const { return Vector(size_t(shape_.head_dim), 0.0); }

 private:
  Vector row(const ConstRows& rows, int64_t token, int64_t head) const {
    Vector values = zeros();
    const int64_t at = token * rows.token_stride + head * rows.head_stride;
    for (size_t d = 0; d < values.size(); ++d)
      values[d] = load(rows.data, at + int64_t(d), shape_.dtype);
    return values;
  }

  const VarlenShape& shape_;
  const BlockMask& mask_;
  int64_t sequence_, q_begin_, k_begin_, n_, s_, head_, kv_head_;
};

// Adds the gradients of one query head to dk, dv of its KV head, [S, D] each.
void backward_head(const VarlenBackwardArgs& args,
                   const Head& head,
                   int64_t h,
                   std::vector<Vector>& dk,
                   std::vector<Vector>& dv) {
  const VarlenShape& shape = args.shape;
  for (int64_t i = 0; i < head.queries(); ++i) {
    double lse = 0.0;
    const std::vector<Score> scores = head.scores(args.q, args.k, i, lse);
    const Vector q = head.query(args.q, i), grad_out = head.query(args.grad_out, i);
    Vector p, dp, dq = head.zeros();
    double delta = 0.0;
    for (size_t j = 0; j < scores.size(); ++j) {
      p.push_back(std::exp(scores[j].value - lse));
      dp.push_back(Head::dot(grad_out, head.key(args.v, scores[j].key)));
      delta += p[j] * dp[j];
    }
    if (args.grad_lse != nullptr) {
      delta -=
          load(args.grad_lse, h * args.grad_lse_stride + head.q_begin() + i, lse_type(shape.dtype));
    }
    for (size_t j = 0; j < scores.size(); ++j) {
      const double ds = shape.scale * p[j] * (dp[j] - delta);
      const int64_t key = scores[j].key;
      Head::add(dq, ds, head.key(args.k, key));
      Head::add(dk[size_t(key)], ds, q);
      Head::add(dv[size_t(key)], p[j], grad_out);
    }
    head.store_query(args.dq, i, dq);
  }
}

}  // namespace

void varlen_forward_ref(const VarlenForwardArgs& args, const BlockMask& mask) {
  const VarlenShape& shape = args.shape;
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t h = 0; h < shape.heads; ++h) {
      const Head head(shape, mask, b, h);
      for (int64_t i = 0; i < head.queries(); ++i) {
        double lse = 0.0;
        const std::vector<Score> scores = head.scores(args.q, args.k, i, lse);
        Vector out = head.zeros();
        for (const Score& s : scores)
          Head::add(out, std::exp(s.value - lse), head.key(args.v, s.key));
        head.store_query(args.out, i, out);
        store(args.lse, h * args.lse_stride + head.q_begin() + i, lse_type(shape.dtype), lse);
      }
    }
  }
}

void varlen_backward_ref(const VarlenBackwardArgs& args, const BlockMask& mask) {
  const VarlenShape& shape = args.shape;
  const int64_t group = shape.heads / shape.kv_heads;
  for (int64_t b = 0; b < shape.batch; ++b) {
    const int64_t begin = shape.cu_seqlens_k[b], keys = shape.cu_seqlens_k[b + 1] - begin;
    for (int64_t g = 0; g < shape.kv_heads; ++g) {
      std::vector<Vector> dk(size_t(keys), Vector(size_t(shape.head_dim), 0.0)), dv = dk;
      for (int64_t h = g * group; h < (g + 1) * group; ++h)
        backward_head(args, Head(shape, mask, b, h), h, dk, dv);
      for (int64_t j = 0; j < keys; ++j) {
        for (int64_t d = 0; d < shape.head_dim; ++d) {
          const auto at = [&](const Rows& rows) {
            return (begin + j) * rows.token_stride + g * rows.head_stride + d;
          };
          store(args.dk.data, at(args.dk), shape.dtype, dk[size_t(j)][size_t(d)]);
          store(args.dv.data, at(args.dv), shape.dtype, dv[size_t(j)][size_t(d)]);
        }
      }
    }
  }
}

}  // namespace longspur::kernels::attention

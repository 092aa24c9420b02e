// Attention from torch's matrix products, a slice of query rows at a time, on any device: for what
// no kernel takes, such as float32 on CUDA and heads above 256. Scores of a slice stay below
// kSliceScores elements, so memory does not grow with the square of the length. 16-bit operands are
// widened to float32.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <limits>

#include "kernels/common/block_mask.h"
#include "ops/attention_impl.h"
#include "ops/attention_shape.h"

namespace longspur::ops {

namespace {

constexpr int64_t kSliceScores = int64_t{1} << 26;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The reference is better for float64 on the CPU.
bool accepts(const AttentionProblem& problem) {
  const bool wide_cpu = problem.q.device().is_cpu() && problem.q.size(2) > 256;
  return (problem.q.is_cuda() || wide_cpu) &&
         !(problem.q.device().is_cpu() && problem.q.scalar_type() == at::kDouble);
}

at::Tensor widened(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? x : x.to(at::kFloat);
}

// Rows of one sequence: N queries, S keys.
struct Span {
  int64_t b, q_begin, n, k_begin, s;
};

Span span_of(const AttentionProblem& problem, int64_t b) {
  const int32_t* q = problem.host_seqlens_q.const_data_ptr<int32_t>();
  const int32_t* k = problem.host_seqlens_k.const_data_ptr<int32_t>();
  return {b, q[b], q[b + 1] - q[b], k[b], k[b + 1] - k[b]};
}

// Keys or values of a sequence, one matrix a KV head: [G, 1, S, D].
at::Tensor keys_of(const at::Tensor& x, const Span& span) {
  return widened(x.narrow(0, span.k_begin, span.s)).transpose(0, 1).unsqueeze(1);
}

// Query rows [begin, begin + rows) of a sequence: [G, H / G, rows, D].
at::Tensor queries_of(const at::Tensor& x, int64_t kv_heads, int64_t begin, int64_t rows) {
  const at::Tensor part = widened(x.narrow(0, begin, rows)).transpose(0, 1);
  return part.reshape({kv_heads, x.size(1) / kv_heads, rows, x.size(2)});
}

// [H, Tq] to [G, H / G, rows, 1].
at::Tensor row_values(const at::Tensor& x, int64_t kv_heads, int64_t begin, int64_t rows) {
  return x.narrow(1, begin, rows).reshape({kv_heads, x.size(0) / kv_heads, rows, 1});
}

// [G, H / G, rows, D] back to [rows, H, D].
at::Tensor as_rows(const at::Tensor& x) {
  return x.reshape({x.size(0) * x.size(1), x.size(2), x.size(3)}).transpose(0, 1);
}

// Whether query rows [first, first + rows) read each key, where blocks are chosen:
// [G, H / G, rows, S], or fewer heads.
at::Tensor listed_keys(const AttentionProblem& problem,
                       const Span& span,
                       int64_t first,
                       int64_t rows) {
  const auto options = at::TensorOptions(at::kLong).device(problem.q.device());
  const at::Tensor row_block =
      at::arange(first, first + rows, options).floor_divide(kernels::kQueryBlock);
  const at::Tensor key_block = at::arange(span.s, options).floor_divide(problem.block_size);
  // [mask heads, rows, S]: the word of each key's block, then its bit
  const at::Tensor words = problem.block_words[span.b]
                               .index_select(1, row_block)
                               .index_select(2, key_block.floor_divide(32));
  const at::Tensor bits = words.bitwise_right_shift(key_block.remainder(32).to(at::kInt));
  const at::Tensor listed = bits.bitwise_and(1).to(at::kBool);
  const int64_t heads = problem.q.size(1), kv_heads = problem.k.size(1);
  if (listed.size(0) == heads) return listed.reshape({kv_heads, heads / kv_heads, rows, span.s});
  return listed.unsqueeze(1);
}

at::Tensor scores_of(const AttentionProblem& problem,
                     const Span& span,
                     const at::Tensor& q,  // [G, H / G, rows, D]
                     const at::Tensor& k,  // [G, 1, S, D]
                     int64_t first) {
  at::Tensor scores = at::matmul(q, k.transpose(-1, -2)) * problem.scale;
  if (problem.block_words.defined()) {
    const at::Tensor listed = listed_keys(problem, span, first, q.size(2));
    scores = scores.masked_fill(listed.logical_not(), -kInfinity);
  }
  if (!problem.causal) return scores;
  const auto options = at::TensorOptions(at::kLong).device(q.device());
  const at::Tensor last = at::arange(first, first + q.size(2), options) + (span.s - span.n);
  const at::Tensor hidden = at::arange(span.s, options).unsqueeze(0) > last.unsqueeze(1);
  return scores.masked_fill(hidden, -kInfinity);
}

// exp(scores - lse), zero in rows that see no key.
at::Tensor probabilities(const at::Tensor& scores, const at::Tensor& lse) {
  return (scores - lse.masked_fill(lse == -kInfinity, 0.0)).exp();
}

// Calls f(first, rows) for slices of the sequence's query rows.
template <class F>
void for_each_slice(const AttentionProblem& problem, const Span& span, F&& f) {
  const int64_t row_scores = std::max<int64_t>(1, problem.q.size(1) * span.s);
  const int64_t step = std::max<int64_t>(1, kSliceScores / row_scores);
  for (int64_t first = 0; first < span.n; first += step) f(first, std::min(step, span.n - first));
}

AttentionResult torch_forward(const AttentionProblem& problem) {
  auto [out, lse] = attention_outputs(problem.q);
  out.zero_();
  lse.fill_(-kInfinity);
  const int64_t kv_heads = problem.k.size(1);
  for (int64_t b = 0; b + 1 < problem.host_seqlens_q.numel(); ++b) {
    const Span span = span_of(problem, b);
    if (span.s == 0) continue;
    const at::Tensor k = keys_of(problem.k, span), v = keys_of(problem.v, span);
    for_each_slice(problem, span, [&, &out = out, &lse = lse](int64_t first, int64_t rows) {
      const int64_t begin = span.q_begin + first;
      const at::Tensor q = queries_of(problem.q, kv_heads, begin, rows);
      const at::Tensor scores = scores_of(problem, span, q, k, first);
      const at::Tensor slice_lse = at::logsumexp(scores, {-1}, true);  // [G, H / G, rows, 1]
      out.narrow(0, begin, rows).copy_(as_rows(at::matmul(probabilities(scores, slice_lse), v)));
      lse.narrow(1, begin, rows).copy_(slice_lse.reshape({lse.size(0), rows}));
    });
  }
  return {out, lse};
}

AttentionGradient torch_backward(const AttentionProblem& problem,
                                 const AttentionGradients& gradients) {
  auto [dq, dk, dv] = attention_gradients(problem.q, problem.k, problem.v);
  dq.zero_();
  dk.zero_();
  dv.zero_();
  const int64_t kv_heads = problem.k.size(1);
  for (int64_t b = 0; b + 1 < problem.host_seqlens_q.numel(); ++b) {
    const Span span = span_of(problem, b);
    if (span.s == 0 || span.n == 0) continue;
    const at::Tensor k = keys_of(problem.k, span), v = keys_of(problem.v, span);
    at::Tensor sequence_dk = at::zeros_like(k), sequence_dv = at::zeros_like(v);
    for_each_slice(problem, span, [&, &dq = dq](int64_t first, int64_t rows) {
      const int64_t begin = span.q_begin + first;
      const at::Tensor q = queries_of(problem.q, kv_heads, begin, rows);
      const at::Tensor out = queries_of(gradients.out, kv_heads, begin, rows);
      const at::Tensor grad_out = queries_of(gradients.grad_out, kv_heads, begin, rows);
      at::Tensor delta = (out * grad_out).sum(-1, true);
      if (gradients.grad_lse)
        delta = delta - row_values(*gradients.grad_lse, kv_heads, begin, rows);
      const at::Tensor lse = row_values(gradients.lse, kv_heads, begin, rows);
      const at::Tensor p = probabilities(scores_of(problem, span, q, k, first), lse);
      const at::Tensor ds = p * (at::matmul(grad_out, v.transpose(-1, -2)) - delta) * problem.scale;
      dq.narrow(0, begin, rows).copy_(as_rows(at::matmul(ds, k)));
      sequence_dk += at::matmul(ds.transpose(-1, -2), q).sum(1, true);
      sequence_dv += at::matmul(p.transpose(-1, -2), grad_out).sum(1, true);
    });
    dk.narrow(0, span.k_begin, span.s).copy_(sequence_dk.squeeze(1).transpose(0, 1));
    dv.narrow(0, span.k_begin, span.s).copy_(sequence_dv.squeeze(1).transpose(0, 1));
  }
  return {dq, dk, dv};
}

}  // namespace

const AttentionImplementation kAttentionTorch = {"torch", accepts, torch_forward, torch_backward};

}  // namespace longspur::ops

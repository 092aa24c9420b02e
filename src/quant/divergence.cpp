#include "quant/divergence.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/error.h"

namespace longspur::quant {

namespace {

constexpr int64_t kPiece = 1024;

// exp(x) for x <= 0 without branches, so that loops over rows vectorise: 2^n * p(r) with
// r = x - n log 2 in two parts, p of degree 6 on |r| <= log(2) / 2. Below -87 it is the smallest
// normal number, which no sum here feels.
inline float exp_negative(float x) {
  constexpr float kRounder = 0x1.8p23f;
  x = x > -87.0f ? x : -87.0f;
  const float shifted = x * 1.44269504f + kRounder;
  const float n = shifted - kRounder;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t exponent = (std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRounder));
  return std::bit_cast<float>(std::bit_cast<int32_t>(p) + (exponent << 23));
}

struct RowMax {
  float value;
  int64_t at;
};
RowMax row_max(const float* x, int64_t n) {
  float largest = x[0];
  for (int64_t i = 1; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  int64_t at = 0;
  while (at + 1 < n && x[at] != largest) ++at;
  return {largest, at};
}

// Sums over a row: of exp(p - max p), of exp(q - max q), and of the former times (p - q).
struct RowSums {
  double p = 0, q = 0, difference = 0;
};
RowSums row_sums(const float* p, const float* q, int64_t n, float p_max, float q_max) {
  RowSums sums;
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    const int64_t end = std::min(begin + kPiece, n);
    constexpr int kLanes = 16;
    float sp[kLanes] = {}, sq[kLanes] = {}, sd[kLanes] = {};
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const float a = p[i + lane] - p_max, b = q[i + lane] - q_max;
        const float weight = exp_negative(a);
        sp[lane] += weight;
        sq[lane] += exp_negative(b);
        sd[lane] += weight * (a - b);
      }
    }
    for (; i < end; ++i) {
      const float a = p[i] - p_max, b = q[i] - q_max;
      const float weight = exp_negative(a);
      sp[0] += weight;
      sq[0] += exp_negative(b);
      sd[0] += weight * (a - b);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      sums.p += double(sp[lane]);
      sums.q += double(sq[lane]);
      sums.difference += double(sd[lane]);
    }
  }
  return sums;
}

void compare_row(const float* p, const float* q, int64_t vocab, int32_t next, Divergence& total) {
  const RowMax p_max = row_max(p, vocab), q_max = row_max(q, vocab);
  const RowSums sums = row_sums(p, q, vocab, p_max.value, q_max.value);
  const double log_p = std::log(sums.p), log_q = std::log(sums.q);
  total.kl += sums.difference / sums.p - log_p + log_q;
  total.agreeing += p_max.at == q_max.at;
  ++total.rows;
  if (next >= 0) {
    total.nll_reference -= double(p[next]) - double(p_max.value) - log_p;
    total.nll -= double(q[next]) - double(q_max.value) - log_q;
    ++total.scored;
  }
}

}  // namespace

Divergence& Divergence::operator+=(const Divergence& other) {
  kl += other.kl;
  nll_reference += other.nll_reference;
  nll += other.nll;
  rows += other.rows;
  agreeing += other.agreeing;
  scored += other.scored;
  return *this;
}

Divergence compare_logits(const Matrix& reference,
                          const Matrix& found,
                          std::span<const int32_t> next,
                          ThreadPool& pool) {
  LONGSPUR_ASSERT(reference.rows == found.rows && reference.width == found.width);
  LONGSPUR_ASSERT(int64_t(next.size()) == found.rows);
  std::vector<Divergence> parts(next.size());  // a row each: the sum does not depend on threads
  pool.run([&](Team& team) {
    team.dynamic_for(found.rows, 8, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        compare_row(reference.row(row), found.row(row), found.width, next[size_t(row)],
                    parts[size_t(row)]);
      }
    });
  });
  Divergence total;
  for (const Divergence& part : parts) total += part;
  return total;
}

}  // namespace longspur::quant

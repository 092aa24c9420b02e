#include "quant/calibration.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/shape.h"

namespace longspur::quant {

namespace qgemm = kernels::qgemm;

namespace {

constexpr int64_t kTokens = 512;  // a block of tokens that is transposed and multiplied at once
constexpr int64_t kPanel = 192;   // columns of the result a product: what the symmetric case skips

// to[k, t] = x[begin + t, k], tokens beyond the end zero. to: [K, kTokens]
void transpose(const Matrix& x, int64_t begin, int64_t tokens, Matrix& to, ThreadPool& pool) {
  constexpr int64_t kTile = 16;
  const int64_t tiles = ceil_div(x.width, kTile);
  pool.run([&](Team& team) {
    team.dynamic_for(tiles, 1, [&](int64_t tile, int64_t) {
      const int64_t first = tile * kTile, last = std::min(first + kTile, x.width);
      for (int64_t t = 0; t < tokens; ++t) {
        const float* from = x.row(begin + t);
        for (int64_t k = first; k < last; ++k) to.row(k)[t] = from[k];
      }
      for (int64_t k = first; k < last; ++k)
        std::fill(to.row(k) + tokens, to.row(k) + to.width, 0.0f);
    });
  });
}

// gram[first.., panel] += x^T y for the panel of y's columns, from row `first` down.
void add_panel(const Matrix& x_columns,
               const Matrix& y_columns,
               int64_t panel,
               int64_t first,
               std::vector<float>& gram,
               ThreadPool& pool) {
  const int64_t columns = y_columns.rows, tokens = x_columns.width;
  const int64_t width = std::min(kPanel, columns - panel);
  const qgemm::WeightRows rows = {
      DType::kF32, reinterpret_cast<const std::byte*>(y_columns.row(panel)), width, tokens};
  const auto packed = qgemm::pack({&rows, 1}, pool);
  qgemm::MatmulArgs args;
  args.x = x_columns.row(first);
  args.t = x_columns.rows - first;
  args.ldx = tokens;
  args.y = gram.data() + first * columns + panel;
  args.ldy = columns;
  args.accumulate = true;
  qgemm::matmul(pool, *packed, args);
}

void mirror(std::vector<float>& gram, int64_t k) {
  for (int64_t row = 0; row < k; ++row)
    for (int64_t column = row + 1; column < k; ++column)
      gram[size_t(row * k + column)] = gram[size_t(column * k + row)];
}

Matrix sample_of(const Matrix& x) {
  Matrix sample(std::min(kSampleRows, x.rows), x.width);
  for (int64_t i = 0; i < sample.rows; ++i) {
    const float* from = x.row(i * x.rows / sample.rows);
    std::copy(from, from + x.width, sample.row(i));
  }
  return sample;
}

}  // namespace

std::vector<float> InputStats::diagonal() const {
  std::vector<float> result(static_cast<size_t>(k));
  for (int64_t i = 0; i < k; ++i) result[size_t(i)] = gram[size_t(i * k + i)];
  return result;
}

float InputStats::largest() const {
  return absmax.empty() ? 0.0f : *std::max_element(absmax.begin(), absmax.end());
}

void add_gram(const Matrix& x, const Matrix& y, std::vector<float>& gram, ThreadPool& pool) {
  LONGSPUR_ASSERT(x.rows == y.rows);
  const bool symmetric = &x == &y;
  gram.resize(size_t(x.width * y.width), 0.0f);
  const int64_t block = std::min(kTokens, x.rows);
  Matrix x_columns(x.width, block), y_columns(symmetric ? 0 : y.width, symmetric ? 0 : block);
  for (int64_t begin = 0; begin < x.rows; begin += block) {
    const int64_t tokens = std::min(block, x.rows - begin);
    transpose(x, begin, tokens, x_columns, pool);
    if (!symmetric) transpose(y, begin, tokens, y_columns, pool);
    for (int64_t panel = 0; panel < y.width; panel += kPanel) {
      add_panel(x_columns, symmetric ? x_columns : y_columns, panel, symmetric ? panel : 0, gram,
                pool);
    }
  }
  if (symmetric) mirror(gram, x.width);
}

void add_inputs(const Matrix& x, InputStats& stats, ThreadPool& pool) {
  if (stats.k == 0) {
    stats.k = x.width;
    stats.absmax.resize(size_t(x.width), 0.0f);
    stats.sample = sample_of(x);
  }
  LONGSPUR_ASSERT(stats.k == x.width);
  add_gram(x, x, stats.gram, pool);
  stats.tokens += x.rows;
  for (int64_t t = 0; t < x.rows; ++t) {
    const float* row = x.row(t);
    for (int64_t k = 0; k < x.width; ++k)
      stats.absmax[size_t(k)] = std::max(stats.absmax[size_t(k)], std::abs(row[k]));
  }
}

}  // namespace longspur::quant

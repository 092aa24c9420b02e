#include "quant/cholesky.h"

#include <algorithm>
#include <cmath>

#include "base/shape.h"
#include "quant/lanes.h"

namespace longspur::quant {

namespace {

constexpr int64_t kPanel = 64;  // columns factored before the rest is updated
constexpr int64_t kGrain = 8;   // rows a thread takes at once

// Lower triangular L with A = L L^T, in place, column panel by column panel.
class Cholesky {
 public:
  Cholesky(std::vector<double>& a, int64_t k, ThreadPool& pool)
      : a_(a), k_(k), pool_(pool), transposed_(size_t(kPanel * k)) {}

  bool run() {
    for (int64_t begin = 0; begin < k_; begin += kPanel) {
      const int64_t end = std::min(begin + kPanel, k_);
      for (int64_t row = begin; row < end; ++row) {
        if (!solve_row(row, begin, row)) return false;
      }
      pool_.run([&](Team& team) {
        team.dynamic_for(k_ - end, kGrain, [&](int64_t first, int64_t last) {
          for (int64_t row = end + first; row < end + last; ++row) below_panel(row, begin, end);
        });
        team.dynamic_for(k_ - end, kGrain, [&](int64_t first, int64_t last) {
          for (int64_t row = end + first; row < end + last; ++row) {
            lane_kernels().subtract_rows(at(row, end), at(row, begin), transposed_.data() + end, k_,
                                         end - begin, row - end + 1);
          }
        });
      });
    }
    return true;
  }

 private:
  double* at(int64_t row, int64_t column) { return a_.data() + row * k_ + column; }

  // L[row, begin .. end) of a panel that starts at column `begin`; with end = row also the pivot.
  bool solve_row(int64_t row, int64_t begin, int64_t end) {
    for (int64_t column = begin; column <= std::min(end, k_ - 1); ++column) {
      double sum = *at(row, column);
      for (int64_t t = begin; t < column; ++t) sum -= *at(row, t) * *at(column, t);
      if (column < row) {
        *at(row, column) = sum / *at(column, column);
      } else {
        if (!(sum > 0) || !std::isfinite(sum)) return false;
        *at(row, column) = std::sqrt(sum);
      }
    }
    return true;
  }

  void below_panel(int64_t row, int64_t begin, int64_t end) {
    solve_row(row, begin, end - 1);
    for (int64_t t = begin; t < end; ++t) transposed_[size_t((t - begin) * k_ + row)] = *at(row, t);
  }

  std::vector<double>& a_;
  int64_t k_;
  ThreadPool& pool_;
  std::vector<double> transposed_;  // [panel, K]: the panel's rows below it
};

// The inverse of an upper triangular R, panels of columns apart.
std::vector<double> invert_upper(const std::vector<double>& r, int64_t k, ThreadPool& pool) {
  std::vector<double> u(size_t(k * k), 0.0);
  const int64_t panels = ceil_div(k, kPanel);
  pool.run([&](Team& team) {
    // the wide ones, which reach further down, first
    team.dynamic_for(panels, 1, [&](int64_t index, int64_t) {
      const int64_t begin = (panels - 1 - index) * kPanel, end = std::min(begin + kPanel, k);
      for (int64_t row = end - 1; row >= 0; --row) {
        double* out = u.data() + row * k + begin;
        if (row >= begin) out[row - begin] = 1.0;
        lane_kernels().subtract_rows(out, r.data() + row * k + row + 1, out + k, k, end - 1 - row,
                                     end - begin);
        const double pivot = r[size_t(row * k + row)];
        for (int64_t i = 0; i < end - begin; ++i) out[i] /= pivot;
      }
    });
  });
  return u;
}

}  // namespace

// With J the reversal of the order, J H J = L L^T gives H = R R^T with R = J L J upper triangular,
// and H^-1 = R^-T R^-1: U is R^-1, and H^-1 itself is never formed.
std::vector<float> inverse_factor(const std::vector<float>& h,
                                  int64_t k,
                                  const std::vector<int32_t>& order,
                                  ThreadPool& pool) {
  const auto source = [&](int64_t i) { return order.empty() ? i : int64_t(order[size_t(i)]); };
  std::vector<double> reversed(size_t(k * k), 0.0);
  for (int64_t i = 0; i < k; ++i) {
    const float* row = h.data() + source(k - 1 - i) * k;
    for (int64_t j = 0; j <= i; ++j) reversed[size_t(i * k + j)] = double(row[source(k - 1 - j)]);
  }
  if (!Cholesky(reversed, k, pool).run()) return {};
  std::reverse(reversed.begin(), reversed.end());  // rows and columns: J L J
  const std::vector<double> u = invert_upper(reversed, k, pool);
  return std::vector<float>(u.begin(), u.end());
}

}  // namespace longspur::quant

// RoPE + append, paged decode and gather on a device against plain loops in double, over shuffled
// pages whose unused entries are NaN.
#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/attention/cuda/paged_cuda.h"
#include "kernels/common/cuda/device_test.cuh"

namespace longspur::kernels::attention::cuda {
namespace {

using bf16 = __nv_bfloat16;
using testing::as_float;
using testing::cast;
using testing::DeviceArray;
using testing::random_floats;

struct Case {
  int64_t heads, kv_heads, dim, rotary;
  std::vector<int64_t> kv_lens;  // after the append
  std::vector<int64_t> rows;     // new tokens of each sequence
  int64_t window = 0;
  bool norms = false;
  bool own_tables = false;  // each sequence has rotary tables of its own
};

// Appends every sequence from its first token in one launch, then checks decode of its last rows.
template <class T>
class Harness {
 public:
  explicit Harness(const Case& c) : c_(c), b_(int64_t(c.kv_lens.size())) {
    for (int64_t b = 0; b < b_; ++b) {
      for (int64_t p = 0; p < c.kv_lens[size_t(b)]; ++p) {
        sequence_.push_back(int32_t(b));
        position_.push_back(int32_t(p));
      }
      longest_ = std::max(longest_, c.kv_lens[size_t(b)]);
    }
    max_blocks_ = (longest_ + kPageTokens - 1) / kPageTokens + 1;
    const int64_t pages = b_ * c.kv_heads * max_blocks_;
    for (int64_t i = 0; i < pages; ++i) table_.push_back(int32_t(i));
    std::shuffle(table_.begin(), table_.end(), std::mt19937(5));
    pool_.assign(size_t(pages * 2 * kPageTokens * c.dim), T(NAN));
    ld_ = (c.heads + 2 * c.kv_heads) * c.dim;
    qkv_ = cast<T>(random_floats(sequence_.size() * size_t(ld_), 1));
    for (int64_t b = 0; b < b_; ++b)
      table_start_.push_back(c.own_tables ? int32_t((b_ - 1 - b) * longest_) : 0);
    cos_ = random_floats(size_t(b_ * longest_ * c.rotary / 2), 2);
    sin_ = random_floats(size_t(b_ * longest_ * c.rotary / 2), 3);
    q_norm_ = random_floats(size_t(c.dim), 4);
    k_norm_ = random_floats(size_t(c.dim), 5);
  }

  void run(double tolerance) {
    const DeviceArray<T> pool(pool_), qkv(qkv_);
    const DeviceArray<int32_t> table(table_), sequence(sequence_), position(position_),
        starts(table_start_);
    const DeviceArray<float> cos(cos_), sin(sin_), q_norm(q_norm_), k_norm(k_norm_);
    const PagedCache cache{pool.get(),  table.get(), max_blocks_,
                           c_.kv_heads, c_.dim,      sizeof(T) == 4 ? Type::kF32 : Type::kBF16};
    const TokenMap map{sequence.get(), position.get(), int64_t(sequence_.size())};
    const RopeAppendArgs append{qkv.get(),
                                cos.get(),
                                sin.get(),
                                c_.own_tables ? starts.get() : nullptr,
                                c_.norms ? q_norm.get() : nullptr,
                                c_.norms ? k_norm.get() : nullptr,
                                1e-6f,
                                c_.heads,
                                c_.rotary};
    ASSERT_EQ(rope_append(append, map, cache, nullptr), nullptr);
    const std::vector<T> rotated = qkv.download();
    check_rotation(rotated, tolerance);
    for (int64_t b = 0; b < b_; ++b) check_gather(cache, rotated, b);
    check_decode(cache, map, qkv, rotated, tolerance);
  }

 private:
  // Row `row` (query or key head) of token t after norm and rotation, in double.
  std::vector<double> expected_row(int64_t t, int64_t row) const {
    std::vector<double> x(static_cast<size_t>(c_.dim));
    double squares = 0;
    for (int64_t i = 0; i < c_.dim; ++i) {
      x[size_t(i)] = as_float(qkv_[size_t(t * ld_ + row * c_.dim + i)]);
      squares += x[size_t(i)] * x[size_t(i)];
    }
    if (row >= c_.heads + c_.kv_heads) return x;
    if (c_.norms) {
      const double scale = 1.0 / std::sqrt(squares / double(c_.dim) + 1e-6);
      const auto& norm = row < c_.heads ? q_norm_ : k_norm_;
      for (int64_t i = 0; i < c_.dim; ++i) x[size_t(i)] *= scale * norm[size_t(i)];
    }
    const int64_t half = c_.rotary / 2;
    const int64_t angle = position_[size_t(t)] + table_start_[size_t(sequence_[size_t(t)])];
    for (int64_t i = 0; i < half; ++i) {
      const double cs = cos_[size_t(angle * half + i)], sn = sin_[size_t(angle * half + i)];
      const double a = x[size_t(i)], b = x[size_t(i + half)];
      x[size_t(i)] = a * cs - b * sn;
      x[size_t(i + half)] = b * cs + a * sn;
    }
    return x;
  }

  void check_rotation(const std::vector<T>& rotated, double tolerance) const {
    std::vector<T> found;
    std::vector<double> expected;
    for (int64_t t = 0; t < int64_t(sequence_.size()); ++t) {
      for (int64_t h = 0; h < c_.heads; ++h) {
        const auto row = expected_row(t, h);
        expected.insert(expected.end(), row.begin(), row.end());
        const auto* from = rotated.data() + t * ld_ + h * c_.dim;
        found.insert(found.end(), from, from + c_.dim);
      }
    }
    EXPECT_LE(testing::relative_error(found, expected), tolerance);
  }

  int64_t first_token(int64_t b) const {
    int64_t first = 0;
    for (int64_t i = 0; i < b; ++i) first += c_.kv_lens[size_t(i)];
    return first;
  }

  void check_gather(const PagedCache& cache, const std::vector<T>&, int64_t b) {
    const int64_t n = c_.kv_lens[size_t(b)];
    const DeviceArray<T> k(std::vector<T>(size_t(n * c_.kv_heads * c_.dim), T(NAN)));
    const DeviceArray<T> v(std::vector<T>(size_t(n * c_.kv_heads * c_.dim), T(NAN)));
    ASSERT_EQ(gather_kv({b, n, k.get(), v.get()}, cache, nullptr), nullptr);
    std::vector<double> keys, values;
    for (int64_t p = 0; p < n; ++p) {
      for (int64_t g = 0; g < c_.kv_heads; ++g) {
        const auto key = expected_row(first_token(b) + p, c_.heads + g);
        const auto value = expected_row(first_token(b) + p, c_.heads + c_.kv_heads + g);
        keys.insert(keys.end(), key.begin(), key.end());
        values.insert(values.end(), value.begin(), value.end());
      }
    }
    EXPECT_LE(testing::relative_error(k.download(), keys), sizeof(T) == 4 ? 1e-6 : 3e-3);
    EXPECT_LE(testing::relative_error(v.download(), values), 1e-12);  // copied, not computed
  }

  void check_decode(const PagedCache& cache,
                    const TokenMap& map,
                    const DeviceArray<T>& qkv,
                    const std::vector<T>& rotated,
                    double tolerance) {
    const float scale = 0.3f;
    for (int64_t b = 0; b < b_; ++b) {
      const int64_t rows = c_.rows[size_t(b)], n = c_.kv_lens[size_t(b)];
      const int64_t first = first_token(b) + n - rows;
      const DeviceArray<T> out(std::vector<T>(size_t(rows * c_.heads * c_.dim), T(NAN)));
      const DeviceArray<float> partial(std::vector<float>(
          size_t(decode_scratch_bytes(rows, c_.heads, c_.dim, longest_) / 4), NAN));
      const DecodeArgs args{qkv.get() + first * ld_,
                            ld_,
                            out.get(),
                            partial.get(),
                            c_.heads,
                            longest_,
                            scale,
                            c_.window};
      ASSERT_EQ(
          paged_decode(args, {map.sequence + first, map.position + first, rows}, cache, nullptr),
          nullptr);
      std::vector<double> expected;
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t h = 0; h < c_.heads; ++h)
          append_expected(rotated, b, first + i, h, scale, expected);
      }
      EXPECT_LE(testing::relative_error(out.download(), expected), tolerance);
    }
  }

  // Attention of head h of token t over its visible keys, with the query as the device rounded it.
  void append_expected(const std::vector<T>& rotated,
                       int64_t b,
                       int64_t t,
                       int64_t h,
                       float scale,
                       std::vector<double>& expected) const {
    const int64_t g = h / (c_.heads / c_.kv_heads), last = position_[size_t(t)];
    const int64_t begin = c_.window > 0 ? std::max<int64_t>(0, last + 1 - c_.window) : 0;
    std::vector<double> scores, out(static_cast<size_t>(c_.dim), 0.0);
    double max = -1e300, sum = 0;
    for (int64_t p = begin; p <= last; ++p) {
      const auto key = expected_row(first_token(b) + p, c_.heads + g);
      double dot = 0;
      for (int64_t i = 0; i < c_.dim; ++i) {
        dot += double(as_float(rotated[size_t(t * ld_ + h * c_.dim + i)])) *
               as_float(T(float(key[size_t(i)])));
      }
      scores.push_back(dot * scale);
      max = std::max(max, scores.back());
    }
    for (int64_t p = begin; p <= last; ++p) {
      const double weight = std::exp(scores[size_t(p - begin)] - max);
      sum += weight;
      const auto value = expected_row(first_token(b) + p, c_.heads + c_.kv_heads + g);
      for (int64_t i = 0; i < c_.dim; ++i) out[size_t(i)] += weight * value[size_t(i)];
    }
    for (double o : out) expected.push_back(o / sum);
  }

  Case c_;
  int64_t b_, longest_ = 0, max_blocks_ = 0, ld_ = 0;
  std::vector<int32_t> sequence_, position_, table_, table_start_;
  std::vector<T> pool_, qkv_;
  std::vector<float> cos_, sin_, q_norm_, k_norm_;
};

TEST(PagedCuda, MatchesDouble) {
  LONGSPUR_REQUIRE_DEVICE();
  const std::vector<Case> cases = {
      {9, 3, 64, 64, {1, 65, 200}, {1, 3, 1}},
      {8, 2, 128, 128, {129, 128}, {2, 1}},
      {4, 4, 80, 80, {70}, {5}},
      {6, 1, 24, 16, {130, 3}, {1, 2}},
      {2, 2, 256, 256, {150}, {1}},
      {4, 2, 64, 64, {200, 40}, {3, 1}, 37},
      {4, 2, 64, 64, {140}, {2}, 1},
      {4, 2, 32, 32, {90, 64}, {2, 1}, 0, true},
      {4, 2, 32, 32, {90, 64, 7}, {2, 1, 1}, 0, false, true},
      {15, 3, 128, 128, {700, 3, 129, 64}, {1, 1, 1, 1}},
      {8, 1, 64, 64, {390}, {1}, 200},
      {2, 1, 32, 32, {17000, 40}, {1, 1}},  // more splits than a block has threads
  };
  for (const Case& c : cases) {
    Harness<float>(c).run(2e-6);
    Harness<bf16>(c).run(
        4e-3);  // one bf16 rounding of each output, 2^-9, and of the softmax' inputs
  }
}

TEST(PagedCuda, RefusesOddHeadSizes) {
  PagedCache cache{};
  cache.head_dim = 20;
  EXPECT_NE(paged_decode({}, {}, cache, nullptr), nullptr);
}

}  // namespace
}  // namespace longspur::kernels::attention::cuda

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>

#include "kernels/common/cuda/device_test.cuh"
#include "kernels/nvfp4/codec.h"
#include "kernels/nvfp4/cuda/matmul.h"

namespace longspur::kernels::nvfp4::cuda {
namespace {

using bf16 = __nv_bfloat16;
using testing::DeviceArray;

enum class Signs { kMixed, kPositive };

// An NVFP4 matrix on the host. Scales are of ordinary size, but one in eight is zero, subnormal or
// the largest.
struct Matrix {
  Matrix(int64_t rows, int64_t k, unsigned seed, Signs signs = Signs::kMixed) : rows(rows), k(k) {
    std::mt19937 random(seed);
    for (int64_t i = 0; i < rows * k / 2; ++i)
      codes.push_back(uint8_t(random() & (signs == Signs::kMixed ? 0xffu : 0x77u)));
    for (int64_t i = 0; i < rows * k / kBlock; ++i) {
      const unsigned pick = random() % 64;
      scales.push_back(uint8_t(pick < 7 ? pick : pick == 7 ? kE4m3MaxCode : 0x28 + random() % 32));
    }
    for (int64_t i = 0; i < rows; ++i) multiplier.push_back(0.01f + 0.001f * float(i % 7));
  }
  // Without the multiplier: exact in double.
  double at(int64_t row, int64_t i) const {
    return double(e2m1_decode(codes[size_t(row * (k / 2) + i / 2)] >> (i % 2 * 4) & 15u)) *
           double(e4m3_decode(scales[size_t(row * (k / kBlock) + i / kBlock)]));
  }
  std::vector<double> values() const {
    std::vector<double> result;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = 0; i < k; ++i) result.push_back(at(row, i));
    return result;
  }
  int64_t rows, k;
  std::vector<uint8_t> codes, scales;
  std::vector<float> multiplier;
};

struct DeviceMatrix {
  explicit DeviceMatrix(const Matrix& m)
      : codes(m.codes), scales(m.scales), multiplier(m.multiplier), rows(m.rows), k(m.k) {}
  Weights weights(const void* packed) const {
    return {codes.get(), scales.get(), packed, multiplier.get(), true, rows, k};
  }
  DeviceArray<uint8_t> codes, scales;
  DeviceArray<float> multiplier;
  int64_t rows, k;
};

struct Case {
  int64_t m, n, k;
  bool packed = true, bias = true;
  Signs signs = Signs::kMixed;
};

std::string name_of(const Case& c) {
  return "M " + std::to_string(c.m) + " N " + std::to_string(c.n) + " K " + std::to_string(c.k) +
         (c.packed ? " packed" : " canonical");
}

// The largest |y - expected| / (sum |a b| + |bias|) over the results (a sample of them where there
// are many); `found` holds y, and must have no NaN left.
double worst_error(const std::vector<float>& found,
                   const std::vector<double>& x,
                   const std::vector<double>& x_factor,
                   const Matrix& w,
                   const std::vector<float>& bias) {
  const std::vector<double> values = w.values();
  const auto m = int64_t(x_factor.size()), k = w.k;
  for (const float y : found) {
    if (std::isnan(y)) return std::numeric_limits<double>::quiet_NaN();
  }
  const int64_t stride = std::max<int64_t>(1, m * w.rows * k / 100'000'000) | 1;
  double worst = 0;
  for (int64_t i = 0; i < m * w.rows; i += stride) {
    const int64_t token = i / w.rows, row = i % w.rows;
    double sum = 0, size = 0;
    for (int64_t j = 0; j < k; ++j) {
      const double product = x[size_t(token * k + j)] * values[size_t(row * k + j)];
      sum += product;
      size += std::fabs(product);
    }
    const double factor = double(w.multiplier[size_t(row)]) * x_factor[size_t(token)];
    const double b = bias.empty() ? 0.0 : double(bias[size_t(row)]);
    const double error = std::fabs(double(found[size_t(i)]) - (sum * factor + b));
    worst = std::max(worst, error / (size * factor + std::fabs(b) + 1e-30));
  }
  return worst;
}

template <class T>
std::vector<float> as_floats(const std::vector<T>& values) {
  std::vector<float> result;
  for (const T& v : values) result.push_back(float(v));
  return result;
}

std::vector<float> random_input(const Case& c) {
  auto x = testing::random_floats(size_t(c.m * c.k), 5);
  if (c.signs == Signs::kPositive)
    for (float& v : x) v = std::fabs(v);
  return x;
}

template <class Out>
constexpr Type kTypeOf = sizeof(Out) == 4            ? Type::kF32
                         : std::is_same_v<Out, bf16> ? Type::kBF16
                                                     : Type::kF16;

// W4A16 with x of type In; the name of the implementation that ran goes to *choice.
template <class In, class Out>
double error_of(const Case& c, std::string* choice = nullptr) {
  const Matrix w(c.n, c.k, 1, c.signs);
  const DeviceMatrix dw(w);
  const DeviceArray<uint8_t> packed(std::vector<uint8_t>(size_t(packed_bytes(c.n, c.k)), 0xa5));
  EXPECT_EQ(pack(dw.weights(nullptr), packed.get(), nullptr), nullptr);
  const auto x = testing::cast<In>(random_input(c));
  const auto bias = c.bias ? testing::random_floats(size_t(c.n), 6) : std::vector<float>();
  const DeviceArray<In> dx(x);
  const DeviceArray<float> db(bias);
  const DeviceArray<Out> dy(std::vector<Out>(size_t(c.m * c.n), Out(NAN)));
  MatmulArgs args;
  args.w = dw.weights(c.packed ? packed.get() : nullptr);
  if (c.packed) args.w.codes = args.w.scales = nullptr;
  args.x = dx.get();
  args.x_type = kTypeOf<In>;
  args.bias = c.bias ? db.get() : nullptr;
  args.y = dy.get();
  args.y_type = kTypeOf<Out>;
  args.m = c.m;
  if (choice != nullptr) *choice = matmul_choice(args);
  EXPECT_EQ(matmul(args, nullptr), nullptr);
  const auto floats = as_floats(x);
  return worst_error(as_floats(dy.download()), {floats.begin(), floats.end()},
                     std::vector<double>(size_t(c.m), 1.0), w, bias);
}

// W4A4: NVFP4 x of a factor a row.
double error_of_w4a4(const Case& c, std::string* choice = nullptr) {
  const Matrix w(c.n, c.k, 1, c.signs), x(c.m, c.k, 2, c.signs);
  const DeviceMatrix dw(w), dx(x);
  const DeviceArray<uint8_t> packed(std::vector<uint8_t>(size_t(packed_bytes(c.n, c.k)), 0xa5));
  EXPECT_EQ(pack(dw.weights(nullptr), packed.get(), nullptr), nullptr);
  const DeviceArray<float> dy(std::vector<float>(size_t(c.m * c.n), NAN));
  MatmulArgs args;
  args.w = dw.weights(c.packed ? packed.get() : nullptr);
  args.x_codes = dx.codes.get();
  args.x_scales = dx.scales.get();
  args.x_multiplier = dx.multiplier.get();
  args.x_multiplier_per_row = true;
  args.y = dy.get();
  args.y_type = Type::kF32;
  args.m = c.m;
  const DeviceArray<uint8_t> workspace(
      std::vector<uint8_t>(size_t(matmul_workspace_bytes(args)), 0xff));
  args.workspace = workspace.get();
  if (choice != nullptr) *choice = matmul_choice(args);
  EXPECT_EQ(matmul(args, nullptr), nullptr);
  return worst_error(dy.download(), x.values(), {x.multiplier.begin(), x.multiplier.end()}, w, {});
}

const Case kCases[] = {
    {1, 1, 16},      {1, 16, 64},     {2, 100, 128},   {3, 128, 192},    {5, 520, 448},
    {7, 200, 2048},  {8, 4099, 256},  {9, 130, 1104},  {13, 72, 64},     {15, 520, 4096},
    {16, 136, 448},  {1, 4096, 2304}, {16, 2200, 512}, {17, 1, 16},      {17, 200, 448},
    {33, 129, 1024}, {63, 520, 448},  {64, 384, 4096}, {65, 200, 192},   {130, 257, 1104},
    {130, 64, 8192}, {256, 136, 448}, {257, 640, 144}, {12, 17000, 128}, {1, 36000, 144},
};

// fp32 results. From 17 tokens on sums stay in the tensor cores, whose truncation shows more.
double bound(const Case& c) { return c.m <= 16 ? 1e-6 : 4e-6; }

TEST(Nvfp4MatmulCuda, MatchesDoubleOnPackedWeights) {
  LONGSPUR_REQUIRE_DEVICE();
  for (const Case& c : kCases) {
    EXPECT_LE((error_of<bf16, float>(c)), bound(c)) << name_of(c);
    EXPECT_LE((error_of<__half, float>(c)), bound(c)) << name_of(c);
  }
}

TEST(Nvfp4MatmulCuda, EveryNumberOfFewTokens) {
  LONGSPUR_REQUIRE_DEVICE();
  for (int64_t m = 1; m <= 18; ++m) {
    const Case c{m, 264, 1216};
    EXPECT_LE((error_of<bf16, float>(c)), bound(c)) << m;
    EXPECT_LE((error_of<bf16, bf16>({m, 264, 1216})), 4e-3) << m;  // bf16's rounding
  }
}

TEST(Nvfp4MatmulCuda, MatchesDoubleOnCanonicalWeights) {
  LONGSPUR_REQUIRE_DEVICE();
  for (Case c : kCases) {
    if (c.m * c.n * c.k > 100'000'000) continue;
    c.packed = false;
    EXPECT_LE((error_of<bf16, float>(c)), 1e-6) << name_of(c);
    EXPECT_LE((error_of<float, float>(c)), 1e-6) << name_of(c);
    EXPECT_LE((error_of<__half, __half>(c)), 1e-3) << name_of(c);
  }
}

// W4A4 keeps the bound where every product has one sign, which is where truncated sums would show.
TEST(Nvfp4MatmulCuda, FourBitInputsAreExact) {
  LONGSPUR_REQUIRE_DEVICE();
  for (Case c : kCases) {
    for (const Signs signs : {Signs::kMixed, Signs::kPositive}) {
      c.signs = signs;
      EXPECT_LE(error_of_w4a4(c), 1e-6) << name_of(c) << (signs == Signs::kPositive ? " +" : "");
    }
  }
  for (const Case c : {Case{3, 64, 14336, true, false, Signs::kPositive},
                       {70, 64, 14336, true, false, Signs::kPositive}})
    EXPECT_LE(error_of_w4a4(c), 1e-6) << name_of(c);
}

// More tiles than multiprocessors: blocks that take several, sums in the tensor cores all along.
TEST(Nvfp4MatmulCuda, ManyTokensOfALargeMatrix) {
  LONGSPUR_REQUIRE_DEVICE();
  std::string choice;
  const Case c{1700, 2632, 320};
  EXPECT_LE((error_of<bf16, float>(c, &choice)), 3e-6);
  EXPECT_EQ(choice, "many_tokens");
  EXPECT_LE((error_of<__half, float>(c)), 3e-6);
  for (const Case odd : {c, Case{1801, 2629, 192}, {4099, 4001, 128}}) {
    EXPECT_LE((error_of<bf16, bf16>(odd)), 4e-3) << name_of(odd);
    EXPECT_LE((error_of<__half, __half>(odd)), 1e-3) << name_of(odd);
    EXPECT_LE((error_of<__half, bf16>(odd)), 4e-3) << name_of(odd);
  }
  EXPECT_LE(error_of_w4a4(c), 1e-6);
  // the truncation of 1,024 k-steps: 2^-24 of the sum each, in one direction
  EXPECT_LE((error_of<bf16, float>({1700, 2632, 2048, true, true, Signs::kPositive})), 2e-5);
}

TEST(Nvfp4MatmulCuda, PacksTheBlocksOfGgufLikeTheCanonicalForm) {
  LONGSPUR_REQUIRE_DEVICE();
  const Matrix w(200, 320, 1);
  std::vector<uint8_t> blocks;
  for (int64_t row = 0; row < w.rows; ++row) {
    for (int64_t column = 0; column < w.k; column += 64) {
      const auto scale = w.scales.begin() + (row * w.k + column) / kBlock;
      blocks.insert(blocks.end(), scale, scale + 4);
      for (int64_t i = 0; i < 32; ++i) {
        const auto code = [&](int64_t at) {
          return w.codes[size_t((row * w.k + at) / 2)] >> (at % 2 * 4) & 15;
        };
        const int64_t at = column + i / 8 * 16 + i % 8;
        blocks.push_back(uint8_t(code(at) | code(at + 8) << 4));
      }
    }
  }
  const DeviceMatrix dw(w);
  const DeviceArray<uint8_t> db(blocks);
  const std::vector<uint8_t> poison(size_t(packed_bytes(w.rows, w.k)), 0xa5);
  const DeviceArray<uint8_t> canonical(poison), from_blocks(poison);
  ASSERT_EQ(pack(dw.weights(nullptr), canonical.get(), nullptr), nullptr);
  ASSERT_EQ(pack_blocks(db.get(), w.rows, w.k, from_blocks.get(), nullptr), nullptr);
  EXPECT_EQ(canonical.download(), from_blocks.download());
  EXPECT_NE(pack_blocks(db.get(), w.rows, 48, from_blocks.get(), nullptr), nullptr);
}

TEST(Nvfp4MatmulCuda, ABlockThatIsNotANumberStaysNone) {
  LONGSPUR_REQUIRE_DEVICE();
  Matrix w(64, 256, 1);
  w.scales[size_t(5 * (256 / kBlock) + 3)] = kE4m3Nan;
  const DeviceMatrix dw(w);
  const DeviceArray<uint8_t> packed(std::vector<uint8_t>(size_t(packed_bytes(64, 256))));
  ASSERT_EQ(pack(dw.weights(nullptr), packed.get(), nullptr), nullptr);
  for (const int64_t m : {1, 20}) {
    for (const void* form : {static_cast<const void*>(packed.get()), (const void*)nullptr}) {
      const DeviceArray<bf16> x(testing::cast<bf16>(testing::random_floats(size_t(m * 256), 3)));
      const DeviceArray<float> y(std::vector<float>(size_t(m * 64), 0.0f));
      MatmulArgs args;
      args.w = dw.weights(form);
      args.x = x.get();
      args.y = y.get();
      args.y_type = Type::kF32;
      args.m = m;
      ASSERT_EQ(matmul(args, nullptr), nullptr);
      const auto found = y.download();
      for (int64_t i = 0; i < m * 64; ++i)
        EXPECT_EQ(std::isfinite(found[size_t(i)]), i % 64 != 5) << i;
    }
  }
}

// Each launch reads what the one before wrote, and they overlap: a missing wait would show.
TEST(Nvfp4MatmulCuda, ChainsOfOverlappingLaunchesKeepTheirOrder) {
  LONGSPUR_REQUIRE_DEVICE();
  constexpr int64_t kN = 2048;
  Matrix w(kN, kN, 1);
  for (uint8_t& scale : w.scales) scale = 0x30;  // 0.5
  for (float& factor : w.multiplier) factor = 0.014f;
  const DeviceMatrix dw(w);
  const DeviceArray<uint8_t> packed(std::vector<uint8_t>(size_t(packed_bytes(kN, kN))));
  ASSERT_EQ(pack(dw.weights(nullptr), packed.get(), nullptr), nullptr);
  for (const int64_t m : {1, 16, 40}) {
    const auto start = testing::cast<bf16>(testing::random_floats(size_t(m * kN), 1));
    const auto chain = [&](bool wait) {
      const DeviceArray<bf16> even(start), odd(start);
      for (int i = 0; i < 40; ++i) {
        MatmulArgs args;
        args.w = dw.weights(packed.get());
        args.x = (i % 2 == 0 ? even : odd).get();
        args.y = (i % 2 == 0 ? odd : even).get();
        args.m = m;
        EXPECT_EQ(matmul(args, nullptr), nullptr);
        if (wait) testing::check(cudaDeviceSynchronize());
      }
      return as_floats(even.download());
    };
    const auto expected = chain(true);
    ASSERT_TRUE(std::isfinite(expected[0]));
    for (int run = 0; run < 10; ++run) ASSERT_EQ(chain(false), expected) << m << " " << run;
  }
}

TEST(Nvfp4MatmulCuda, AcceptsWhatItCanDo) {
  EXPECT_TRUE(matmul_accepts(1, 1, 16));
  EXPECT_FALSE(matmul_accepts(0, 1, 16));
  EXPECT_FALSE(matmul_accepts(1, 0, 16));
  EXPECT_FALSE(matmul_accepts(1, 1, 0));
  EXPECT_FALSE(matmul_accepts(1, 1, 24));
  MatmulArgs args;
  args.m = 1;
  args.w.n = 1;
  args.w.k = 24;
  EXPECT_NE(matmul(args, nullptr), nullptr);
  EXPECT_NE(pack(args.w, nullptr, nullptr), nullptr);
  args.w.k = 32;  // neither form of the weights
  EXPECT_STREQ(matmul_choice(args), "none");
  EXPECT_NE(matmul(args, nullptr), nullptr);
  EXPECT_EQ(packed_bytes(1, 16), 9216);
  EXPECT_EQ(packed_bytes(129, 8192), 2 * 64 * 9216);
}

}  // namespace
}  // namespace longspur::kernels::nvfp4::cuda

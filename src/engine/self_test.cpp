#include "engine/self_test.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/aligned_buffer.h"
#include "base/error.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/shape.h"
#include "base/thread_pool.h"
#include "kernels/attention/paged.h"
#include "kernels/qgemm/api.h"
#include "kernels/sampling/api.h"

namespace longspur::engine {

namespace {

namespace attention = kernels::attention;
namespace qgemm = kernels::qgemm;
namespace sampling = kernels::sampling;

constexpr int kThreads = 2;  // so that barriers and the split of work are run too

std::vector<float> noise(uint64_t seed, int64_t n) {
  Noise source(seed);
  std::vector<float> values;
  for (int64_t i = 0; i < n; ++i) values.push_back(source.next());
  return values;
}

SelfTestCase verdict(std::string name, std::string_view isa, double error) {
  return {std::move(name), std::string(isa), error, error <= 1.0};  // false for NaN
}

// --- products

constexpr int64_t kN = 83, kK = 192, kT = 19;  // whole tiles and rests of them

void put_half(std::byte* at, uint16_t bits) { std::memcpy(at, &bits, sizeof(bits)); }

// Stored rows of any type: random bits, with sensible numbers where a number stands.
std::vector<std::byte> stored_weights(DType dtype) {
  Noise source(7);
  std::vector<std::byte> bytes(size_t(dtype_bytes(dtype, kN * kK)));
  const auto block = size_t(dtype_info(dtype).bytes);
  for (size_t at = 0; at < bytes.size(); at += block) {
    std::byte* b = bytes.data() + at;
    const float value = source.next();
    if (dtype == DType::kF32) {
      std::memcpy(b, &value, sizeof(value));
    } else if (dtype == DType::kBF16) {
      put_half(b, float_to_bf16(value));
    } else if (dtype == DType::kF16) {
      put_half(b, float_to_fp16(value));
    } else {
      for (size_t i = 0; i < block; ++i) b[i] = std::byte(source.bits() & 0xff);
      if (dtype == DType::kNVFP4) {  // four scales
        for (size_t i = 0; i < 4; ++i) b[i] = std::byte(0x20 + source.bits() % 32);
        continue;
      }
      put_half(b, float_to_fp16(0.01f * value));
      if (dtype == DType::kQ4_1) put_half(b + 2, float_to_fp16(0.01f * source.next()));
    }
  }
  return bytes;
}

// Multiples of 1/127 of which every block has a 1: codes of quantised activations hold them
// exactly, so that what is left is the rounding of fp32 sums.
std::vector<float> exact_input() {
  Noise source(8);
  std::vector<float> x;
  for (int64_t i = 0; i < kT * kK; ++i)
    x.push_back(i % 4 == 3 ? 1.0f : float(int(source.bits() % 255) - 127) / 127.0f);
  return x;
}

std::vector<float> multiply(const qgemm::PackedWeight& weight,
                            const std::vector<float>& x,
                            ThreadPool& pool) {
  std::vector<float> y(size_t(kT * kN));
  qgemm::MatmulArgs args;
  args.x = x.data();
  args.t = kT;
  args.ldx = kK;
  args.y = y.data();
  args.ldy = kN;
  qgemm::validate(weight, args);
  qgemm::matmul(pool, weight, args);
  return y;
}

SelfTestCase check_product(DType dtype, ThreadPool& pool) {
  const std::vector<std::byte> stored = stored_weights(dtype);
  const float scale = dtype == DType::kNVFP4 ? 0.01f : 1.0f;
  const qgemm::WeightRows rows{dtype, stored.data(), kN, kK, scale};
  const auto weight = qgemm::pack(std::span(&rows, 1), pool);
  const std::vector<float> x = exact_input(), y = multiply(*weight, x, pool);
  std::vector<float> row(static_cast<size_t>(kK));
  double error = 0;
  for (int64_t n = 0; n < kN; ++n) {
    weight->dequantize_row(n, row.data());
    for (int64_t t = 0; t < kT; ++t) {
      double sum = 0, magnitude = 0;
      for (int64_t k = 0; k < kK; ++k) {
        const double term = double(row[size_t(k)]) * double(x[size_t(t * kK + k)]);
        sum += term;
        magnitude += std::abs(term);
      }
      const double found = double(y[size_t(t * kN + n)]);
      const double share = std::abs(found - sum) / (1e-5 * magnitude + 1e-30);
      error = std::isfinite(found) ? std::max(error, share) : INFINITY;
    }
  }
  return verdict(concat("qgemm ", dtype_info(dtype).name), qgemm::active_isa(), error);
}

// --- attention

constexpr int64_t kHeads = 6, kKvHeads = 2, kDim = 64, kTokens = 137;
constexpr int64_t kWidth = (kHeads + 2 * kKvHeads) * kDim;

// Key b of a test's single sequence; no rotation, so that a page holds what was put in.
SelfTestCase check_attention(attention::KvType type, const char* name, ThreadPool& pool) {
  const int64_t blocks = ceil_div(kTokens, int64_t(attention::kPageTokens));
  const int64_t page = attention::page_bytes(type, kDim);
  AlignedBuffer pages(size_t(kKvHeads * blocks * page));
  std::memset(pages.data(), 0, pages.size());
  std::vector<int32_t> table;
  for (int64_t i = 0; i < kKvHeads * blocks; ++i) table.push_back(int32_t(i));
  const attention::PagedKv kv{type, kDim, kKvHeads, pages.data(), table.data(), blocks};
  const int32_t ends[] = {0, int32_t(kTokens)}, length[] = {int32_t(kTokens)};
  const attention::BatchShape shape{1, ends, length};
  std::vector<float> qkv = noise(9, kTokens * kWidth);
  const std::vector<float> one(size_t(kTokens * kDim / 2), 1.0f), zero(one.size(), 0.0f);
  attention::RopeAppendArgs append;
  append.qkv = qkv.data();
  append.ld = kWidth;
  append.heads = kHeads;
  append.cos = one.data();
  append.sin = zero.data();
  append.rotary_dim = kDim;
  std::vector<float> out(size_t(kTokens * kHeads * kDim)), expected(out.size());
  attention::AttentionArgs args;
  args.q = qkv.data();
  args.ldq = kWidth;
  args.out = out.data();
  args.ldo = kHeads * kDim;
  args.heads = kHeads;
  args.scale = 0.125f;
  AlignedBuffer workspace(size_t(attention::workspace_bytes(shape, kHeads, kv, pool.size())));
  pool.run([&](Team& team) {
    attention::rope_append(team, append, shape, kv);
    attention::paged_attention(team, args, shape, kv, workspace.data());
  });
  args.out = expected.data();
  attention::paged_attention_ref(args, shape, kv);
  // Values are below 1; P and, in bf16 pages, q are rounded to 8 bits.
  const double allowed = type == attention::KvType::kBF16 ? 1e-2 : 1e-5;
  double error = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    const double share = std::abs(double(out[i]) - double(expected[i])) / allowed;
    error = std::isfinite(share) ? std::max(error, share) : INFINITY;
  }
  return verdict(concat("attention ", name), attention::active_isa(), error);
}

// --- sampling

SelfTestCase check_sampling() {
  constexpr int64_t kVocab = 5003;
  std::vector<float> logits = noise(10, kVocab);
  for (float& logit : logits) logit *= 8;
  sampling::Workspace workspace;
  int64_t differ = 0;
  for (uint64_t position = 0; position < 32; ++position) {
    sampling::SampleArgs args;
    args.logits = logits.data();
    args.vocab = kVocab;
    args.params.temperature = position % 2 == 0 ? 0.0 : 0.8;
    args.params.top_k = position % 4 == 1 ? 50 : 0;
    args.params.position = position;
    double margin = 1;
    const int32_t expected = sampling::sample_ref(args, &margin).token;
    const bool same = sampling::sample(args, workspace).token == expected;
    differ += !same && margin > 1e-5 ? 1 : 0;
  }
  return verdict("sampling", "", differ == 0 ? 0 : INFINITY);
}

}  // namespace

std::vector<SelfTestCase> self_test() {
  ThreadPool pool(kThreads);
  std::vector<SelfTestCase> cases;
  for (const DType dtype : {DType::kQ4_1, DType::kQ4_0, DType::kQ8_0, DType::kNVFP4, DType::kBF16,
                            DType::kF16, DType::kF32})
    cases.push_back(check_product(dtype, pool));
  cases.push_back(check_attention(attention::KvType::kBF16, "bf16", pool));
  cases.push_back(check_attention(attention::KvType::kF32, "fp32", pool));
  cases.push_back(check_sampling());
  return cases;
}

}  // namespace longspur::engine

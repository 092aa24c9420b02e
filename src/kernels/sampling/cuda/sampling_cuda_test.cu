// The device's draws against the reference, on the cases of the CPU's own test; and its laws.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "kernels/common/cuda/device_test.cuh"
#include "kernels/sampling/cuda/pack.h"
#include "kernels/sampling/cuda/sample_cuda.h"
#include "kernels/sampling/sampling_cases.h"

namespace longspur::kernels::sampling::cuda {
namespace {

using testing::DeviceArray;

struct Drawn {
  SampleResult result;
  std::string error;
};

// Draws for rows of one vocabulary in one launch. `adjusted` starts as NaN, and the counts must be
// zero again afterwards.
std::vector<Drawn> draw_rows(const std::vector<float>& logits,
                             int64_t vocab,
                             const std::vector<SampleArgs>& requests) {
  Packed packed;
  pack(requests, packed);
  const size_t rows = requests.size();
  const DeviceArray<float> x(logits), adjusted(std::vector<float>(logits.size(), NAN));
  const DeviceArray<int32_t> counts(std::vector<int32_t>(logits.size(), 0));
  const DeviceArray<std::byte> blob(packed.bytes);
  const DeviceArray<RowResult> results(std::vector<RowResult>(rows, {Outcome::kDrawn, -7}));
  const DeviceArray<Entry> top(std::vector<Entry>(rows * kMaxTop));
  SampleRowsArgs args{};
  args.logits = x.get();
  args.adjusted = adjusted.get();
  args.counts = counts.get();
  args.rows = reinterpret_cast<const Row*>(blob.get());
  args.bias = reinterpret_cast<const Bias*>(blob.get() + packed.bias_offset);
  args.ids = reinterpret_cast<const int32_t*>(blob.get() + packed.ids_offset);
  args.results = results.get();
  args.top = top.get();
  args.row_count = int64_t(rows);
  args.vocab = vocab;
  EXPECT_EQ(sample_rows(args, nullptr), nullptr);
  const auto found = results.download();
  const auto entries = top.download();
  const auto counted = counts.download();
  EXPECT_TRUE(std::all_of(counted.begin(), counted.end(), [](int32_t n) { return n == 0; }));
  std::vector<Drawn> drawn(rows);
  for (size_t i = 0; i < rows; ++i) {
    const std::span<const Entry> own(entries.data() + i * kMaxTop, kMaxTop);
    drawn[i].error = unpack(found[i], own, requests[i].logprobs_k >= 0, drawn[i].result);
    if (!packed.errors[i].empty()) drawn[i].error = packed.errors[i];
  }
  return drawn;
}

Drawn draw_one(Case& c) {
  c.link();
  return draw_rows(c.logits, c.args.vocab, {c.args})[0];
}

void expect_logprobs(const SampleResult& got, const SampleResult& want) {
  ASSERT_EQ(got.top.size(), want.top.size());
  const auto near = [](float a, float b) { return std::abs(a - b) <= 1e-5f * (1 + std::abs(b)); };
  if (want.logprob > -80) {
    EXPECT_PRED2(near, got.logprob, want.logprob);
  }
  for (size_t i = 0; i < got.top.size(); ++i) {
    EXPECT_EQ(got.top[i].first, want.top[i].first);
    if (want.top[i].second > -80) {
      EXPECT_PRED2(near, got.top[i].second, want.top[i].second);
    }
  }
}

TEST(SamplingCuda, EqualsTheReferenceOnRandomCases) {
  LONGSPUR_REQUIRE_DEVICE();
  std::mt19937 rng(20240817);
  constexpr int kCases = 1500;
  int near_edge = 0;
  for (int i = 0; i < kCases; ++i) {
    Case c = random_case(rng);
    const Drawn got = draw_one(c);
    ASSERT_EQ(got.error, "");
    double margin = 0.0;
    const SampleResult want = sample_ref(c.args, &margin);
    if (got.result.token != want.token &&
        margin < 1e-5) {  // fp32 weights may fall on the other side
      ++near_edge;
      continue;
    }
    ASSERT_EQ(got.result.token, want.token) << "case " << i << " margin " << margin;
    if (c.args.logprobs_k >= 0) expect_logprobs(got.result, want);
  }
  EXPECT_LT(near_edge, kCases / 100);
}

TEST(SamplingCuda, LargeVocabulariesInOneLaunch) {
  LONGSPUR_REQUIRE_DEVICE();
  constexpr int64_t kVocab = 128256;
  std::mt19937 rng(5);
  std::vector<Case> cases;
  for (int i = 0; i < 9; ++i) {
    Case c;
    c.logits = random_logits(rng, kVocab, i < 6 ? 3.0 : 0.01);
    if (i == 5) c.logits.assign(size_t(kVocab), 0.25f);  // nothing but ties
    SamplingView& p = c.args.params;
    p.temperature = i == 0 ? 0.0 : 0.9;
    if (i % 3 == 1) p.top_k = 50;
    if (i % 3 == 2) p.top_p = 0.9;
    if (i % 4 == 3) p.min_p = 0.02;
    p.position = uint64_t(i);
    if (i % 2 == 0) c.args.logprobs_k = kMaxTop;
    cases.push_back(std::move(c));
  }
  std::vector<float> logits;
  std::vector<SampleArgs> requests;
  for (Case& c : cases) {
    c.link();
    logits.insert(logits.end(), c.logits.begin(), c.logits.end());
    requests.push_back(c.args);
  }
  const std::vector<Drawn> drawn = draw_rows(logits, kVocab, requests);
  for (size_t i = 0; i < cases.size(); ++i) {
    double margin = 0.0;
    const SampleResult want = sample_ref(requests[i], &margin);
    if (margin > 1e-5) {
      EXPECT_EQ(drawn[i].result.token, want.token) << i;
    }
    if (drawn[i].result.token == want.token && requests[i].logprobs_k >= 0)
      expect_logprobs(drawn[i].result, want);
    // Alone in its launch, a row draws the same.
    EXPECT_EQ(draw_rows(cases[i].logits, kVocab, {requests[i]})[0].result.token,
              drawn[i].result.token);
  }
}

TEST(SamplingCuda, DrawsFromTheDistribution) {
  LONGSPUR_REQUIRE_DEVICE();
  const std::vector<float> one = {0.3f, -1.0f, 2.0f, 0.3f, 1.1f, -0.4f, 0.0f, 1.9f};
  constexpr int kDraws = 50000, kVocab = 8;
  std::vector<float> logits;
  std::vector<SampleArgs> requests;
  for (int i = 0; i < kDraws; ++i) {
    logits.insert(logits.end(), one.begin(), one.end());
    SampleArgs args;
    args.vocab = kVocab;
    args.params.temperature = 0.8;
    args.params.top_k = 4;  // ids 2 7 4 0: the tie at 0.3 goes to id 0
    args.params.seed = 7;
    args.params.position = uint64_t(i);
    requests.push_back(args);
  }
  std::vector<int> counts(kVocab, 0);
  for (const Drawn& drawn : draw_rows(logits, kVocab, requests))
    ++counts[size_t(drawn.result.token)];
  double total = 0, statistic = 0;
  for (int id : {0, 2, 4, 7}) total += std::exp(one[size_t(id)] / 0.8);
  for (int id : {0, 2, 4, 7}) {
    const double want = kDraws * std::exp(one[size_t(id)] / 0.8) / total;
    statistic += (counts[size_t(id)] - want) * (counts[size_t(id)] - want) / want;
  }
  EXPECT_LT(statistic, 16.3);  // 3 degrees of freedom, 0.1 % level
  EXPECT_EQ(counts[1] + counts[3] + counts[5] + counts[6], 0);
}

TEST(SamplingCuda, UnusableRowsSayWhyAndHarmNoOther) {
  LONGSPUR_REQUIRE_DEVICE();
  constexpr int64_t kVocab = 100;
  std::mt19937 rng(1);
  std::vector<float> logits = random_logits(rng, 6 * kVocab, 1.0);
  logits[17] = NAN;
  logits[kVocab + 99] = kInf;
  std::fill_n(logits.begin() + 2 * kVocab, kVocab, -kInf);
  logits[5 * kVocab + 3] = 50.0f;
  std::vector<int32_t> everything(kVocab);
  for (int32_t i = 0; i < kVocab; ++i) everything[size_t(i)] = i;
  const std::vector<int32_t> outside = {int32_t(kVocab)};
  std::vector<SampleArgs> requests(6);
  for (SampleArgs& args : requests) args.vocab = kVocab;
  requests[3].params.banned = everything;
  requests[4].params.banned = outside;
  const auto drawn = draw_rows(logits, kVocab, requests);
  EXPECT_EQ(drawn[0].error, "sampling: found a NaN logit");
  EXPECT_EQ(drawn[1].error, "sampling: found a logit of +inf");
  EXPECT_EQ(drawn[2].error.find("sampling: found every token banned"), 0u);
  EXPECT_EQ(drawn[3].error.find("sampling: found every token banned"), 0u);
  EXPECT_EQ(drawn[4].error, "sampling: found banned id 100, expected 0 to 99");
  EXPECT_EQ(drawn[5].error, "");
  EXPECT_EQ(drawn[5].result.token, 3);
}

TEST(SamplingCuda, RepeatedBiasIsAppliedInTheCallersOrder) {
  LONGSPUR_REQUIRE_DEVICE();
  Case c;
  c.logits = {1.0f, 0.5f, 0.0f};
  c.bias = {{1, 1e9}, {0, 0.25}, {1, -1e9}, {2, 1.0}};  // 0.5 is lost in 1e9
  EXPECT_EQ(draw_one(c).result.token, 0);
  c.bias.emplace_back(2, 0.5);
  EXPECT_EQ(draw_one(c).result.token, 2);
}

TEST(SamplingCuda, AcceptsWhatItCanReturn) {
  SampleArgs args;
  args.vocab = 1000;
  args.logprobs_k = kMaxTop;
  EXPECT_TRUE(accepts({&args, 1}));
  args.logprobs_k = kMaxTop + 1;
  EXPECT_FALSE(accepts({&args, 1}));
}

}  // namespace
}  // namespace longspur::kernels::sampling::cuda

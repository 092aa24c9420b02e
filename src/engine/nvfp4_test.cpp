// The engine over a tiny random GGUF model whose matrices are NVFP4, each with a multiplier of its
// own.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>

#include "base/error.h"
#include "base/rng.h"
#include "engine/engine.h"
#include "engine/memory_plan.h"
#include "io/files/gguf_builder.h"

namespace longspur::engine {
namespace {

constexpr uint64_t kVocab = 50, kHidden = 128, kInner = 192, kKv = 64, kLayers = 2;

struct Matrix {
  const char* name;
  uint64_t rows, k;
};
constexpr Matrix kMatrices[] = {
    {"attn_q", kHidden, kHidden},      {"attn_k", kKv, kHidden},    {"attn_v", kKv, kHidden},
    {"ffn_gate", kInner, kHidden},     {"ffn_up", kInner, kHidden}, {"ffn_down", kHidden, kInner},
    {"attn_output", kHidden, kHidden},
};

// NVFP4 blocks of random codes, scales 0.5 to 2.
std::string random_blocks(Noise& noise, const Matrix& matrix) {
  std::string bytes;
  for (uint64_t block = 0; block < matrix.rows * matrix.k / 64; ++block) {
    for (int i = 0; i < 4; ++i) bytes += char(0x30 + noise.bits() % 17);
    for (int i = 0; i < 32; ++i) bytes += char(noise.bits() & 0xff);
  }
  return bytes;
}

// bad_scale: the first block scale of the first matrix becomes 0x7f.
std::string tiny_gguf(bool bad_scale) {
  Noise noise(3);
  io::testing::GgufBuilder builder;
  builder.string("general.architecture", "llama")
      .number("llama.context_length", 256u)
      .number("llama.embedding_length", uint32_t(kHidden))
      .number("llama.block_count", uint32_t(kLayers))
      .number("llama.feed_forward_length", uint32_t(kInner))
      .number("llama.attention.head_count", 2u)
      .number("llama.attention.head_count_kv", 1u)
      .number("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  uint64_t offset = 0;  // every matrix is a multiple of 32 bytes long
  for (uint64_t layer = 0; layer < kLayers; ++layer) {
    for (const Matrix& matrix : kMatrices) {
      std::string blocks = random_blocks(noise, matrix);
      if (bad_scale && offset == 0) blocks[0] = 0x7f;
      builder.tensor(concat("blk.", layer, ".", matrix.name, ".weight"), {matrix.k, matrix.rows},
                     40, offset);
      offset += blocks.size();
      builder.data(blocks);
    }
  }
  const auto values = [&](const std::string& name, const std::vector<uint64_t>& dims, float mean,
                          float spread) {
    std::vector<float> data(dims.size() == 1 ? dims[0] : dims[0] * dims[1]);
    for (float& value : data) value = mean + spread * noise.next();
    builder.values(name, dims, data);
  };
  for (uint64_t layer = 0; layer < kLayers; ++layer) {
    for (size_t i = 0; i < std::size(kMatrices); ++i)
      values(concat("blk.", layer, ".", kMatrices[i].name, ".scale"), {1}, 0.01f * float(i % 3 + 1),
             0.0f);
    for (const char* norm : {"attn_norm", "ffn_norm"})
      values(concat("blk.", layer, ".", norm, ".weight"), {kHidden}, 1.0f, 0.2f);
  }
  values("token_embd.weight", {kHidden, kVocab}, 0.0f, 1.0f);
  values("output_norm.weight", {kHidden}, 1.0f, 0.2f);
  return builder.str();
}

class Nvfp4Engine : public ::testing::Test {
 protected:
  static EngineOptions options(const std::string& activations = "default") {
    static const io::testing::TempFolder folder;
    EngineOptions options;
    options.model = folder.write("tiny.gguf", tiny_gguf(false));
    options.threads = 2;
    options.max_sequences = 2;
    options.activations = activations;
    return options;
  }
  static std::vector<float> logits(const EngineOptions& options, int32_t length = 70) {
    const auto engine = Engine::load(options);
    std::vector<int32_t> tokens;
    for (int32_t i = 0; i < length; ++i) tokens.push_back(i * 7 % int32_t(kVocab));
    std::vector<float> out;
    engine->logits(tokens, 0, [&](int64_t, int64_t rows, const float* row) {
      out.insert(out.end(), row, row + rows * int64_t(kVocab));
    });
    return out;
  }
  // Root mean square of the difference over that of the expected values.
  static double distance(const std::vector<float>& found, const std::vector<float>& expected) {
    double error = 0, size = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      error += std::pow(double(found[i]) - double(expected[i]), 2);
      size += std::pow(double(expected[i]), 2);
    }
    return found.size() == expected.size() ? std::sqrt(error / size) : INFINITY;
  }
};

TEST_F(Nvfp4Engine, ComesCloseToTheFp32Reference) {
  EngineOptions exact = options();
  exact.compute = Compute::kFp32;
  const std::vector<float> reference = logits(exact);
  const double eight_bits = distance(logits(options()), reference);
  EXPECT_GT(eight_bits, 0.0);
  EXPECT_LT(eight_bits, 0.02);
  // Four bits a value cost about a tenth of it; a rule that is not used would show as equality.
  const double four_over_six = distance(logits(options("nvfp4")), reference);
  const double sweep = distance(logits(options("nvfp4:sweep")), reference);
  const double six = distance(logits(options("nvfp4:static_6")), reference);
  for (const double error : {four_over_six, sweep, six}) {
    EXPECT_GT(error, 4 * eight_bits);
    EXPECT_LT(error, 0.3);
  }
  EXPECT_NE(four_over_six, sweep);
  EXPECT_NE(four_over_six, six);
  EXPECT_EQ(logits(options("nvfp4")), logits(options("nvfp4:four_over_six")));
}

// Neither the chunks of a prompt nor the threads change what four bits give.
TEST_F(Nvfp4Engine, ChunksAndThreadsChangeNothing) {
  const std::vector<float> expected = logits(options("nvfp4:sweep"));
  EngineOptions other = options("nvfp4:sweep");
  other.prefill_chunk = 7;
  other.threads = 3;
  EXPECT_LT(distance(logits(other), expected), 1e-6);
}

TEST_F(Nvfp4Engine, WeightsTakeTheBytesThatWerePlanned) {
  const EngineOptions o = options();
  const int64_t matrices = int64_t(kHidden * (2 * kHidden + 2 * kKv + 3 * kInner)) / 64 * 36;
  const int64_t multipliers = int64_t(3 * kHidden + 2 * kKv + 2 * kInner) * 4;
  const int64_t embedding = int64_t(kVocab * kHidden) * 4;
  EXPECT_EQ(plan_memory(o).weights_bytes, int64_t(kLayers) * (matrices + multipliers) + embedding);
  const int64_t group_rest = 14 * int64_t(kHidden) * 4;  // rows are packed by sixteens
  EXPECT_EQ(Engine::load(o)->stats().memory.weights_bytes,
            plan_memory(o).weights_bytes + group_rest);
}

TEST_F(Nvfp4Engine, FourBitActivationsAreRefusedWhereTheyDoNotExist) {
  EngineOptions fp32 = options("nvfp4");
  fp32.compute = Compute::kFp32;
  EXPECT_THROW(plan_memory(fp32), UsageError);
  EngineOptions cuda = options("nvfp4");
  cuda.device = "cuda";
  EXPECT_THROW(plan_memory(cuda), UnsupportedError);
  for (const char* text : {"", "nvfp", "nvfp4:", "nvfp4:seven", "NVFP4", "default:sweep"})
    EXPECT_THROW(plan_memory(options(text)), UsageError) << text;
  // a model without NVFP4 matrices
  static const io::testing::TempFolder folder;
  EngineOptions plain = options("nvfp4");
  plain.model = folder.write("plain.gguf", io::testing::tiny_llama_gguf());
  EXPECT_THROW(plan_memory(plain), Error);
  plain.activations = "default";
  EXPECT_NO_THROW(plan_memory(plain));
}

EngineOptions with_cache(EngineOptions options) {
  options.kv_type = KvStorage::kNVFP4;
  return options;
}

TEST_F(Nvfp4Engine, AnNvfp4CacheComesCloseToBf16AndIsUsed) {
  const std::vector<float> expected = logits(options(), 200),
                           found = logits(with_cache(options()), 200);
  EXPECT_GT(distance(found, expected), 1e-4);
  EXPECT_LT(distance(found, expected), 0.1);
  // The first block and a query's own are bf16, of keys that a rotation has rounded otherwise.
  const double rounding = distance(logits(with_cache(options()), 100), logits(options(), 100));
  EXPECT_GT(rounding, 0.0);
  EXPECT_LT(rounding, std::min(5e-3, distance(found, expected)));
}

TEST_F(Nvfp4Engine, ChunksDoNotChangeWhatAnNvfp4CacheGives) {
  const std::vector<float> expected = logits(with_cache(options()), 250);
  for (const int chunk : {7, 64, 90}) {
    EngineOptions other = with_cache(options());
    other.prefill_chunk = chunk;
    other.threads = 3;
    EXPECT_LT(distance(logits(other, 250), expected), 5e-3) << chunk;
  }
}

// The text of each request is its own, whatever runs beside it and whenever it is preempted: token
// by token here, so that every position is computed alike.
TEST_F(Nvfp4Engine, AnNvfp4CacheKeepsSequencesApart) {
  const auto generate = [](EngineOptions options, int requests) {
    options.prefill_chunk = 1;
    options.max_context = 192;
    const auto engine = Engine::load(options);
    std::map<std::string, std::vector<int32_t>> tokens;
    for (int i = 0; i < requests; ++i) {
      Request request;
      request.id = std::to_string(i);
      for (int32_t t = 0; t < 3 + 40 * i; ++t)
        request.prompt.push_back((t * 11 + i) % int32_t(kVocab));
      request.sampling.max_tokens = 90;
      request.sampling.temperature = 0;
      request.sampling.ignore_eos = true;
      engine->submit(request);
    }
    while (engine->busy()) {
      for (const RequestUpdate& update : engine->step()) {
        auto& own = tokens[update.id];
        own.insert(own.end(), update.tokens.begin(), update.tokens.end());
      }
    }
    return tokens;
  };
  EngineOptions one = with_cache(options());
  one.max_sequences = 1;
  const auto alone = generate(one, 3);
  EngineOptions three = with_cache(options());
  three.max_sequences = 3;
  EXPECT_EQ(generate(three, 3), alone);
  EngineOptions crowded = three;  // room for one context: the others are preempted
  crowded.kv_bytes = plan_memory([&] {
                       EngineOptions o = one;
                       o.max_context = 192;
                       return o;
                     }())
                         .kv_bytes;
  EXPECT_EQ(generate(crowded, 3), alone);
}

TEST_F(Nvfp4Engine, AnNvfp4CacheTakesLessThanThreeTenths) {
  EngineOptions o = options();
  o.max_context = 8192;
  o.max_sequences = 1;
  o.kv_bytes = int64_t(1) << 32;
  EXPECT_LE(double(plan_memory(with_cache(o)).kv_bytes), 0.30 * double(plan_memory(o).kv_bytes));
}

TEST_F(Nvfp4Engine, AnNvfp4CacheIsRefusedWhereItDoesNotExist) {
  EngineOptions fp32 = with_cache(options());
  fp32.compute = Compute::kFp32;
  EXPECT_THROW(plan_memory(fp32), UsageError);
  EngineOptions cuda = with_cache(options());
  cuda.device = "cuda";
  EXPECT_THROW(plan_memory(cuda), UnsupportedError);
}

TEST_F(Nvfp4Engine, AScaleThatIsNoNumberIsRefused) {
  const io::testing::TempFolder folder;
  EngineOptions bad = options();
  bad.model = folder.write("bad.gguf", tiny_gguf(true));
  EXPECT_THROW(Engine::load(bad), Error);
}

}  // namespace
}  // namespace longspur::engine

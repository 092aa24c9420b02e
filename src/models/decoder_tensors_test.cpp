#include "models/decoder_tensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "base/half.h"
#include "io/files/gguf.h"
#include "io/files/gguf_builder.h"

namespace longspur::models {
namespace {

using io::testing::GgufBuilder;
using io::testing::refusal;
using io::testing::TempFolder;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

struct Opened {
  explicit Opened(const std::string& bytes)
      : file(io::GgufFile::open(folder.write("m.gguf", bytes))),
        config(io::model_config_from_gguf(*file)) {}
  DecoderTensors find() const { return find_decoder_tensors(*file, config); }

  TempFolder folder;
  std::unique_ptr<io::GgufFile> file;
  io::ModelConfig config;
};

TEST(DecoderTensors, AreFound) {
  const Opened model(io::testing::tiny_llama_gguf());
  const DecoderTensors tensors = model.find();
  ASSERT_EQ(tensors.layers.size(), 2u);
  EXPECT_EQ(tensors.embedding.n(), 5);
  EXPECT_FALSE(tensors.head);  // tied
  EXPECT_EQ(tensors.layers[1].q.permuted_heads, 2);
  EXPECT_EQ(tensors.layers[1].down.k(), 16);
  EXPECT_FALSE(tensors.layers[0].q_bias);
}

// Everything that is wrong stands in one message, with what was found and what was expected.
TEST(DecoderTensors, AllProblemsInOneMessage) {
  GgufBuilder builder = io::testing::llama_keys();
  builder.values("token_embd.weight", {8, 5}, std::vector<float>(40));
  builder.values("blk.0.attn_q.weight", {8, 9}, std::vector<float>(72));
  builder.values("blk.1.ffn_norm.weight", {8, 1}, std::vector<float>(8));
  const Opened model(builder.str());
  const std::string message = refusal([&] { model.find(); });
  EXPECT_THAT(message, AllOf(HasSubstr("m.gguf: 19 tensors missing or of the wrong shape or type"),
                             HasSubstr("output_norm.weight (missing)"),
                             HasSubstr("blk.0.attn_q.weight (found [9, 8], expected [8, 8])"),
                             HasSubstr("blk.1.ffn_norm.weight (found [1, 8], expected [8])"),
                             HasSubstr("blk.1.ffn_down.weight (missing)")));
  EXPECT_THAT(message, Not(HasSubstr("token_embd")));
}

TEST(DecoderTensors, AnEmptyFileMissesAll) {
  GgufBuilder builder = io::testing::llama_keys();
  builder.number("llama.vocab_size", 5u);
  const Opened model(builder.str());
  EXPECT_THAT(refusal([&] { model.find(); }), HasSubstr("tensors missing"));
}

TEST(DecoderTensors, IntegersAreNoWeights) {
  // the type of the embedding stands behind its name, dimension count and two dimensions
  std::string bytes = io::testing::tiny_llama_gguf();
  const size_t at = bytes.find("token_embd.weight") + 17 + 4 + 16;
  bytes[at] = 26;  // I32
  const Opened model(bytes);
  EXPECT_THAT(refusal([&] { model.find(); }),
              HasSubstr("token_embd.weight (found type I32, expected a floating-point"));
}

TEST(DecoderTensors, RowsComeInTheModelsOrder) {
  const Opened model(io::testing::tiny_llama_gguf());
  const DecoderTensors tensors = model.find();
  const TensorSource& q = tensors.layers[0].q;
  const Rows rows = read_rows(q, DType::kF32);
  const auto* found = reinterpret_cast<const float*>(rows.data);
  const auto* stored = reinterpret_cast<const float*>(q.tensor->data.data());
  // two heads of four rows; stored row 2 j + s of a head is the model's row 2 s + j
  const int order[] = {0, 2, 1, 3, 4, 6, 5, 7};
  for (int row = 0; row < 8; ++row) {
    for (int k = 0; k < 8; ++k) EXPECT_EQ(found[row * 8 + k], stored[order[row] * 8 + k]);
  }
}

// GGUF keeps the scale of an NVFP4 tensor in a tensor beside it.
GgufBuilder nvfp4_model(const std::vector<float>& scale, const std::string& block) {
  GgufBuilder builder;
  builder.string("general.architecture", "llama")
      .number("llama.context_length", 16u)
      .number("llama.embedding_length", 64u)
      .number("llama.block_count", 1u)
      .number("llama.feed_forward_length", 64u)
      .number("llama.attention.head_count", 1u)
      .number("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  const auto ones = [&](const std::string& name, const std::vector<uint64_t>& dims) {
    builder.values(name, dims, std::vector<float>(dims.size() == 1 ? 64 : 64 * dims[1], 1.0f));
  };
  std::string blocks;
  for (int row = 0; row < 64; ++row) blocks += block;
  builder.tensor("blk.0.attn_output.weight", {64, 64}, 40, 0).data(blocks);  // 2,304 bytes
  ones("token_embd.weight", {64, 2});
  ones("output_norm.weight", {64});
  for (const char* name : {"attn_norm", "ffn_norm"}) ones(concat("blk.0.", name, ".weight"), {64});
  for (const char* name : {"attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up", "ffn_down"})
    ones(concat("blk.0.", name, ".weight"), {64, 64});
  if (!scale.empty()) builder.values("blk.0.attn_output.scale", {scale.size()}, scale);
  return builder;
}

const std::string kHalves = "\x38\x38\x38\x38" + std::string(32, '\x11');  // 0.5, block scale 1

TEST(DecoderTensors, ScaleBesideTheTensorCounts) {
  for (const std::vector<float>& scale : {std::vector<float>{}, {1.0f}, {0.25f}}) {
    const Opened model(nvfp4_model(scale, kHalves).str());
    const DecoderTensors tensors = model.find();
    const TensorSource& output = tensors.layers[0].output;
    const float expected = 0.5f * (scale.empty() ? 1.0f : scale[0]);
    EXPECT_EQ(reinterpret_cast<const float*>(read_rows(output, DType::kF32).data)[4095], expected);
    const Rows half = read_rows(output, DType::kBF16);
    uint16_t bits = 0;
    std::memcpy(&bits, half.data + 2 * 4095, 2);
    EXPECT_EQ(bf16_to_float(bits), expected);
    // as stored, the multiplier stays beside the blocks
    const Rows blocks = read_rows(output, DType::kNVFP4);
    EXPECT_EQ(blocks.data, output.tensor->data.data());
    EXPECT_EQ(blocks.scale, scale.empty() ? 1.0f : scale[0]);
    EXPECT_EQ(half.scale, 1.0f);
  }
}

TEST(DecoderTensors, ScalesThatMakeNoSenseAreRefused) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const std::vector<float>& scale :
       {std::vector<float>{0.0f}, {-1.0f}, {infinity}, {std::nanf("")}, {1.0f, 1.0f}}) {
    const Opened model(nvfp4_model(scale, kHalves).str());
    EXPECT_THAT(refusal([&] { model.find(); }),
                AllOf(HasSubstr("blk.0.attn_output.scale (found "),
                      HasSubstr(", expected one positive number of type F32)")));
  }
}

// A block scale is a number without a sign; anything else is refused, not read as something.
TEST(DecoderTensors, EveryBlockScaleIsFiniteOrRefused) {
  for (int scale = 0; scale < 256; ++scale) {
    const std::string block = std::string(4, char(scale)) + std::string(32, '\x77');
    const Opened model(nvfp4_model({}, block).str());
    const DecoderTensors tensors = model.find();
    const TensorSource& output = tensors.layers[0].output;
    if (scale >= 0x7f) {
      for (const DType as : {DType::kF32, DType::kBF16, DType::kNVFP4})
        EXPECT_THAT(
            refusal([&] { read_rows(output, as); }),
            HasSubstr(concat("blk.0.attn_output.weight: block scales: found the byte ", scale)));
      continue;
    }
    const Rows rows = read_rows(output, DType::kF32);
    const float value = reinterpret_cast<const float*>(rows.data)[0];
    EXPECT_TRUE(std::isfinite(value)) << scale;
    EXPECT_EQ(value == 0.0f, scale == 0) << scale;
  }
}

}  // namespace
}  // namespace longspur::models

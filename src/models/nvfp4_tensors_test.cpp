// NVFP4 weights of HF folders in the three dialects, alone and beside bf16 weights.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>

#include "base/half.h"
#include "base/rng.h"
#include "io/files/safetensors_writer.h"
#include "io/files/test_files.h"
#include "models/decoder_tensors.h"

namespace longspur::models {
namespace {

using io::testing::refusal;
using io::testing::TempFolder;
using ::testing::AllOf;
using ::testing::HasSubstr;

using Bytes = std::vector<std::byte>;

// The tensors of a folder before they are written: a test changes what it wants.
struct Tensors {
  struct Tensor {
    DType dtype;
    std::vector<int64_t> shape;
    Bytes data;
  };
  std::map<std::string, Tensor> all;

  template <class T>
  void put(const std::string& name,
           DType dtype,
           std::vector<int64_t> shape,
           std::vector<T> values) {
    Bytes data(values.size() * sizeof(T));
    std::memcpy(data.data(), values.data(), data.size());
    all[name] = {dtype, std::move(shape), std::move(data)};
  }
  void put_scalar(const std::string& name, float value) {
    put<float>(name, DType::kF32, {1}, {value});
  }
};

constexpr int64_t kHidden = 64, kHeads = 2;
constexpr const char* kQ = "model.layers.0.self_attn.q_proj.";

std::vector<uint16_t> small_bf16(int64_t count) {
  std::vector<uint16_t> values(size_t(count), 0);
  Noise noise(7);
  for (size_t i = 0; i < values.size(); ++i) values[i] = float_to_bf16(0.01f * noise.next());
  return values;
}

Tensors plain_model(int64_t hidden = kHidden) {
  Tensors t;
  const auto weight = [&](const std::string& name, std::vector<int64_t> shape) {
    const int64_t count = shape.size() == 1 ? shape[0] : shape[0] * shape[1];
    t.put<uint16_t>(name + ".weight", DType::kBF16, std::move(shape), small_bf16(count));
  };
  weight("model.embed_tokens", {5, hidden});
  weight("model.norm", {hidden});
  for (const char* name : {"input_layernorm", "post_attention_layernorm"})
    weight(concat("model.layers.0.", name), {hidden});
  for (const char* name : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                           "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"})
    weight(concat("model.layers.0.", name), {hidden, hidden});
  return t;
}

io::Nvfp4Matrix random_matrix(int64_t rows, int64_t k) {
  io::Nvfp4Matrix matrix;
  matrix.rows = rows;
  matrix.k = k;
  matrix.multiplier = 0.75f / 1536.0f;
  Noise noise(11);
  matrix.codes.resize(size_t(rows * k / 2));
  for (uint8_t& code : matrix.codes) code = uint8_t(noise.bits());
  matrix.scales.resize(size_t(rows * k / 16));
  for (uint8_t& scale : matrix.scales) scale = uint8_t(noise.bits() % 0x7f);
  return matrix;
}

// The formula, element by element.
float value_of(const io::Nvfp4Matrix& m, int64_t row, int64_t at) {
  static constexpr float kE2m1[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  const int code = m.codes[size_t(row * m.k / 2 + at / 2)] >> (at % 2 * 4) & 15;
  const uint8_t scale = m.scales[size_t(row * m.k / 16 + at / 16)];
  float block = 0.0f;
  io::dequantize(DType::kF8E4M3, reinterpret_cast<const std::byte*>(&scale), 1, &block);
  return (code & 8 ? -1.0f : 1.0f) * kE2m1[code & 7] * block * m.multiplier;
}

void put_model_opt(Tensors& t, const std::string& base, const io::Nvfp4Matrix& m) {
  t.put(base + "weight", DType::kU8, {m.rows, m.k / 2}, m.codes);
  t.put(base + "weight_scale", DType::kF8E4M3, {m.rows, m.k / 16}, m.scales);
  t.put_scalar(base + "weight_scale_2", m.multiplier);
  t.put_scalar(base + "input_scale", 0.01f);
}

void put_compressed_tensors(Tensors& t, const std::string& base, const io::Nvfp4Matrix& m) {
  t.all.erase(base + "weight");
  t.put(base + "weight_packed", DType::kU8, {m.rows, m.k / 2}, m.codes);
  t.put(base + "weight_scale", DType::kF8E4M3, {m.rows, m.k / 16}, m.scales);
  t.put_scalar(base + "weight_global_scale",
               io::stored_scale(m.multiplier, io::ScaleDirection::kDivisor));
}

void put_fouroversix(Tensors& t, const std::string& base, const io::Nvfp4Matrix& m) {
  const int32_t rows = int32_t(m.rows), k = int32_t(m.k), padded = (rows + 127) / 128 * 128,
                padded_k = (k + 63) / 64 * 64;
  t.all.erase(base + "weight");
  std::vector<uint8_t> codes(size_t(padded * padded_k / 2), 0),
      wide(size_t(padded * padded_k / 16), 0);
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(&codes[size_t(row * padded_k / 2)], &m.codes[size_t(row * k / 2)], size_t(k / 2));
    std::memcpy(&wide[size_t(row * padded_k / 16)], &m.scales[size_t(row * k / 16)],
                size_t(k / 16));
  }
  std::vector<uint8_t> swizzled(wide.size());
  io::swizzle_scales(wide.data(), padded, padded_k / 16, swizzled.data());
  t.put(base + "quantized_weight_values", DType::kU8, {padded, padded_k / 2}, codes);
  t.put(base + "quantized_weight_scale_factors", DType::kF8E4M3, {int64_t(swizzled.size())},
        swizzled);
  t.put_scalar(base + "quantized_weight_amax", 0.75f);
  t.put<int32_t>(base + "quantized_weight_metadata", DType::kI32, {6},
                 {rows, k, padded, padded_k, 1, 1});
}

struct Opened {
  explicit Opened(const Tensors& tensors,
                  const std::string& quantization = "",
                  int64_t hidden = kHidden) {
    std::vector<io::TensorToWrite> list;
    for (const auto& [name, t] : tensors.all) list.push_back({name, t.dtype, t.shape, t.data});
    io::write_safetensors(folder.file("model.safetensors"), list, {});
    folder.write(
        "config.json",
        concat(R"({"model_type":"llama","vocab_size":5,"hidden_size":)", hidden,
               R"(,"intermediate_size":)", hidden,
               R"(,"num_hidden_layers":1,"num_attention_heads":)", kHeads,
               R"(,"tie_word_embeddings":true)",
               quantization.empty() ? "" : R"(,"quantization_config":)" + quantization, "}"));
    config = io::model_config_from_hf(folder.path().string());
    file = io::open_safetensors(folder.path().string());
  }
  DecoderTensors find() const { return find_decoder_tensors(*file, config); }

  TempFolder folder;
  io::ModelConfig config;
  std::unique_ptr<io::TensorFile> file;
};

using Put = void (*)(Tensors&, const std::string&, const io::Nvfp4Matrix&);
struct Dialect {
  Put put;
  const char* config;
};
const Dialect kDialects[] = {
    {put_model_opt, R"({"quant_method":"modelopt","quant_algo":"NVFP4","group_size":16})"},
    {put_compressed_tensors,
     R"({"quant_method":"compressed-tensors","format":"nvfp4-pack-quantized"})"},
    {put_fouroversix, R"({"quant_method":"fouroversix","dtype":"nvfp4","scale_rule":"mse"})"}};

TEST(Nvfp4Tensors, EveryDialectGivesTheSameRows) {
  const io::Nvfp4Matrix matrix = random_matrix(kHidden, kHidden);
  for (const Dialect& dialect : kDialects) {
    Tensors t = plain_model();
    dialect.put(t, kQ, matrix);
    const Opened model(t, dialect.config);
    const DecoderTensors tensors = model.find();
    const TensorSource& q = tensors.layers[0].q;
    EXPECT_EQ(q.dtype(), DType::kNVFP4);
    EXPECT_EQ(q.n(), kHidden);
    EXPECT_EQ(q.k(), kHidden);
    EXPECT_EQ(tensors.layers[0].k.dtype(), DType::kBF16);  // a mixed model
    const Rows floats = read_rows(q, DType::kF32), half = read_rows(q, DType::kBF16);
    const Rows blocks = read_rows(q, DType::kNVFP4);
    EXPECT_EQ(blocks.scale, matrix.multiplier);
    std::vector<float> decoded(size_t(kHidden * kHidden));
    io::dequantize(DType::kNVFP4, blocks.data, kHidden * kHidden, decoded.data());
    for (int64_t i = 0; i < kHidden * kHidden; ++i) {
      const float expected = value_of(matrix, i / kHidden, i % kHidden);
      ASSERT_EQ(reinterpret_cast<const float*>(floats.data)[i], expected) << dialect.config << i;
      ASSERT_EQ(decoded[size_t(i)] * blocks.scale, expected) << dialect.config << i;
      ASSERT_EQ(bf16_to_float(reinterpret_cast<const uint16_t*>(half.data)[i]),
                bf16_to_float(float_to_bf16(expected)));
    }
  }
}

TEST(Nvfp4Tensors, RowsThatAreNoWholeBlocksAreDequantised) {
  const io::Nvfp4Matrix matrix = random_matrix(48, 48);
  for (const Dialect& dialect : kDialects) {
    Tensors t = plain_model(48);
    dialect.put(t, kQ, matrix);
    const Opened model(t, dialect.config, 48);
    const DecoderTensors tensors = model.find();
    const Rows floats = read_rows(tensors.layers[0].q, DType::kF32);
    for (int64_t i = 0; i < 48 * 48; ++i)
      ASSERT_EQ(reinterpret_cast<const float*>(floats.data)[i], value_of(matrix, i / 48, i % 48));
  }
}

TEST(Nvfp4Tensors, UnswizzledScalesOfFouroversix) {
  const io::Nvfp4Matrix matrix = random_matrix(kHidden, kHidden);
  Tensors t = plain_model();
  put_fouroversix(t, kQ, matrix);
  const std::string base = kQ;
  t.put(base + "quantized_weight_values", DType::kU8, {kHidden, kHidden / 2}, matrix.codes);
  t.put(base + "quantized_weight_scale_factors", DType::kF8E4M3, {kHidden * kHidden / 16},
        matrix.scales);
  t.put<int64_t>(base + "quantized_weight_metadata", DType::kI64, {6},
                 {kHidden, kHidden, kHidden, kHidden, 1, 0});
  const Opened model(t, kDialects[2].config);
  const DecoderTensors tensors = model.find();
  const Rows floats = read_rows(tensors.layers[0].q, DType::kF32);
  for (int64_t i = 0; i < kHidden * kHidden; ++i)
    ASSERT_EQ(reinterpret_cast<const float*>(floats.data)[i],
              value_of(matrix, i / kHidden, i % kHidden));
}

// --- what is refused
// ------------------------------------------------------------------------------

struct Broken {
  int dialect;
  std::function<void(Tensors&)> change;
  std::string message;  // names the part
};

void expect_refused_when_found(const std::vector<Broken>& cases) {
  for (const Broken& broken : cases) {
    Tensors t = plain_model();
    kDialects[broken.dialect].put(t, kQ, random_matrix(kHidden, kHidden));
    broken.change(t);
    const Opened model(t, kDialects[broken.dialect].config);
    EXPECT_THAT(refusal([&] { model.find(); }),
                AllOf(HasSubstr(model.folder.path().string()), HasSubstr(kQ + broken.message)));
  }
}

TEST(Nvfp4Tensors, MissingAndMisshapenPartsAreRefused) {
  const std::string q = kQ;
  expect_refused_when_found({
      {0, [&](Tensors& t) { t.all.erase(q + "weight_scale"); }, "weight_scale (missing"},
      {0, [&](Tensors& t) { t.all.erase(q + "weight_scale_2"); }, "weight_scale_2 (missing"},
      {1, [&](Tensors& t) { t.all.erase(q + "weight_global_scale"); }, "weight_global_scale (miss"},
      {2, [&](Tensors& t) { t.all.erase(q + "quantized_weight_metadata"); },
       "quantized_weight_meta"},
      {2, [&](Tensors& t) { t.all.erase(q + "quantized_weight_amax"); },
       "quantized_weight_amax (m"},
      {0,
       [&](Tensors& t) {
         t.all[q + "weight_scale"].shape = {4, kHidden};
       },
       "weight_scale (found [4, 64], expected [64, 4])"},
      {0,
       [&](Tensors& t) {
         t.all[q + "weight"].shape = {kHidden / 2, kHidden};
       },
       "weight_scale (found [64, 4], expected [32, 8])"},
      {0,
       [&](Tensors& t) {
         t.all[q + "weight"].shape = {kHidden * 8, 4};
       },
       "weight (found rows of 4 bytes, expected a multiple of 8"},
      {0, [&](Tensors& t) { t.all[q + "weight"].shape = {kHidden * kHidden / 2}; },
       "weight (found the shape [2048], expected [rows, K / 2])"},
      {0, [&](Tensors& t) { t.all[q + "weight_scale"].dtype = DType::kF8E5M2; },
       "weight_scale (found type F8_E5M2, expected F8_E4M3 or U8)"},
      {1, [&](Tensors& t) { t.all[q + "weight_packed"].dtype = DType::kI8; },
       "weight_packed (found type I8, expected U8)"},
      {1, [&](Tensors& t) { t.all[q + "weight_zero_point"] = t.all[q + "weight_scale"]; },
       "weight_zero_point (found beside NVFP4 codes"},
      {0, [&](Tensors& t) { t.put_scalar(q + "pre_quant_scale", 1.0f); }, "pre_quant_scale (found"},
      {1, [&](Tensors& t) { t.all[q + "weight"] = t.all[q + "weight_packed"]; },
       "weight (found stored in two ways"},
      {2,
       [&](Tensors& t) {
         t.put<int32_t>(q + "quantized_weight_metadata", DType::kI32, {6}, {64, 64, 32, 64, 1, 1});
       },
       "quantized_weight_metadata (found 64, 64, 32"},
      {2,
       [&](Tensors& t) {
         t.put<int64_t>(q + "quantized_weight_metadata", DType::kI64, {6},
                        {64, 64, int64_t(1) << 62, 64, 1, 1});
       },
       "quantized_weight_metadata (found 64, 64, 46"},
      {2,
       [&](Tensors& t) {
         t.put<int32_t>(q + "quantized_weight_metadata", DType::kI32, {6}, {64, 64, 256, 64, 1, 1});
       },
       "quantized_weight_values (found [128, 32], expected [256, 32])"},
  });
}

TEST(Nvfp4Tensors, ScalesOfTheTensorThatMakeNoSenseAreRefused) {
  const std::string q = kQ;
  const float infinity = std::numeric_limits<float>::infinity();
  const char* parts[] = {"weight_scale_2", "weight_global_scale", "quantized_weight_amax"};
  for (int dialect = 0; dialect < 3; ++dialect) {
    for (const float value : {0.0f, -0.5f, infinity, -infinity, std::nanf("")}) {
      expect_refused_when_found(
          {{dialect, [&](Tensors& t) { t.put_scalar(q + parts[dialect], value); },
            std::string(parts[dialect]) + " (found"}});
    }
    expect_refused_when_found({{dialect,
                                [&](Tensors& t) {
                                  t.put<float>(q + parts[dialect], DType::kF32, {2}, {1, 1});
                                },
                                std::string(parts[dialect]) + " (found F32 [2]"}});
  }
}

// amax of weights from 0.02 to 50: the scale written the other way round is noticed, at once or
// when the rows are read, and the right way round never.
TEST(Nvfp4Tensors, SwappedDirectionsAreRefused) {
  const std::string q = kQ;
  io::Nvfp4Matrix matrix = random_matrix(kHidden, kHidden);
  for (const float bound : {256.0f, 448.0f}) {
    matrix.scales[5] = bound == 256.0f ? 0x78 : 0x7e;  // the block with the largest value has it
    for (uint8_t& scale : matrix.scales) scale = std::min(scale, matrix.scales[5]);
    for (const float amax : {0.02f, 0.3f, 1.0f, 7.0f, 50.0f}) {
      const float multiplier = amax / (6 * bound), divisor = 1.0f / multiplier;
      for (const bool swapped : {false, true}) {
        Tensors opt = plain_model(), packed = plain_model();
        put_model_opt(opt, kQ, matrix);
        opt.put_scalar(q + "weight_scale_2", swapped ? divisor : multiplier);
        put_compressed_tensors(packed, kQ, matrix);
        packed.put_scalar(q + "weight_global_scale", swapped ? multiplier : divisor);
        for (const Tensors& t : {opt, packed}) {
          const Opened model(t);
          const auto run = [&] { read_rows(model.find().layers[0].q, DType::kNVFP4); };
          if (!swapped) {
            EXPECT_NO_THROW(run()) << amax;
          } else {
            EXPECT_THAT(refusal(run), AllOf(HasSubstr(kQ), HasSubstr("in the other direction")));
          }
        }
      }
    }
  }
}

TEST(Nvfp4Tensors, BlockScalesThatAreNoneAreRefused) {
  for (const int byte : {0x7f, 0x80, 0xb8, 0xff}) {
    io::Nvfp4Matrix matrix = random_matrix(kHidden, kHidden);
    matrix.scales.back() = uint8_t(byte);
    for (const Dialect& dialect : kDialects) {
      Tensors t = plain_model();
      dialect.put(t, kQ, matrix);
      const Opened model(t, dialect.config);
      const DecoderTensors tensors = model.find();
      for (const DType as : {DType::kNVFP4, DType::kF32, DType::kBF16})
        EXPECT_THAT(refusal([&] { read_rows(tensors.layers[0].q, as); }),
                    AllOf(HasSubstr(kQ), HasSubstr(concat("found the byte ", byte))));
    }
  }
}

// Scales beside a weight of another type would be ignored: silent garbage.
TEST(Nvfp4Tensors, OtherTypesWithScalesAreRefused) {
  Tensors t = plain_model();
  t.put<uint8_t>(std::string(kQ) + "weight", DType::kF8E4M3, {kHidden, kHidden},
                 std::vector<uint8_t>(size_t(kHidden * kHidden), 0x38));
  t.put_scalar(std::string(kQ) + "weight_scale", 0.5f);
  const Opened model(t);
  EXPECT_THAT(refusal([&] { model.find(); }),
              HasSubstr("q_proj.weight (found type F8_E4M3 with a weight_scale beside it"));
}

TEST(Nvfp4Tensors, FouroversixNeedsItsScaleRule) {
  Tensors t = plain_model();
  put_fouroversix(t, kQ, random_matrix(kHidden, kHidden));
  for (const char* config : {"", R"({"quant_method":"fouroversix","dtype":"nvfp4"})"}) {
    const Opened model(t, config);
    EXPECT_THAT(refusal([&] { model.find(); }), HasSubstr("found no scale rule"));
  }
  const Opened six(
      t, R"({"quant_method":"fouroversix","scale_rule":"mse","weight_scale_rule":"static_6"})");
  EXPECT_EQ(six.find().layers[0].q.scale, 0.75f / 2688.0f);
}

}  // namespace
}  // namespace longspur::models

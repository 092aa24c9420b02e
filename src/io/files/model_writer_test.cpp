#include "io/files/model_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstring>
#include <filesystem>
#include <map>

#include "base/half.h"
#include "base/rng.h"
#include "io/files/gguf.h"
#include "io/files/gguf_builder.h"
#include "io/files/model_config.h"
#include "io/files/safetensors_writer.h"

namespace longspur::io {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::refusal;
using testing::TempFolder;

constexpr int64_t kHidden = 64, kVocab = 5;

Nvfp4Matrix random_matrix(const std::string& name, uint64_t seed, bool with_input = false) {
  Noise noise(seed);
  Nvfp4Matrix m{name, kHidden, kHidden, {}, {}, 0.75f / 1536.0f, with_input ? 0.01f : 0.0f};
  m.codes.resize(kHidden * kHidden / 2);
  m.scales.resize(kHidden * kHidden / 16);
  for (uint8_t& code : m.codes) code = uint8_t(noise.bits());
  for (uint8_t& scale : m.scales) scale = uint8_t(noise.bits() % 0x7f);
  return m;
}

const char* const kMatrices[] = {
    "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight",
    "model.layers.0.self_attn.v_proj.weight", "model.layers.0.self_attn.o_proj.weight",
    "model.layers.0.mlp.gate_proj.weight",    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.mlp.down_proj.weight"};

// A folder of one layer in bf16, with files that go along and files that do not.
std::string plain_folder(const TempFolder& root) {
  const std::string folder = root.file("plain");
  fs::create_directory(folder);
  std::map<std::string, std::vector<uint16_t>> values;
  std::vector<TensorToWrite> list;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    std::vector<uint16_t>& data = values[name];
    Noise noise(name.size());
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    for (int64_t i = 0; i < count; ++i) data.push_back(float_to_bf16(noise.next()));
    list.push_back({name, DType::kBF16, std::move(shape), {}});
  };
  add("model.embed_tokens.weight", {kVocab, kHidden});
  add("model.norm.weight", {kHidden});
  add("model.layers.0.input_layernorm.weight", {kHidden});
  add("model.layers.0.post_attention_layernorm.weight", {kHidden});
  for (const char* name : kMatrices) add(name, {kHidden, kHidden});
  for (TensorToWrite& tensor : list) tensor.data = std::as_bytes(std::span(values[tensor.name]));
  write_safetensors(folder + "/model.safetensors", list, {});
  const auto write = [&](const char* name, std::string_view text) {
    root.write(std::string("plain/") + name, text);
  };
  write(
      "config.json",
      R"({"model_type":"llama","vocab_size":5,"hidden_size":64,"intermediate_size":64,)"
      R"("num_hidden_layers":1,"num_attention_heads":2,"tie_word_embeddings":true,"kept":[1,2]})");
  write("tokenizer_config.json", R"({"chat_template":"hi"})");
  write("LICENSE", "as is");
  write("optimizer.pt", "not a part of the model");
  return folder;
}

std::unique_ptr<TensorFile> open_any(const std::string& path) {
  if (fs::is_directory(path)) return open_safetensors(path);
  return GgufFile::open(path);
}

float top_of(const std::string& path) {
  return fs::is_directory(path) ? model_config_from_hf(path).quantization.fouroversix_top : 0.0f;
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::string text_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// All matrices as NVFP4 in the dialect.
void quantize_all(const std::string& source,
                  const std::string& out,
                  const ModelWriterOptions& options,
                  bool with_input = false) {
  ModelWriter writer(source, out, options);
  for (const char* name : kMatrices) writer.declare_nvfp4(name, with_input);
  writer.begin();
  for (size_t i = std::size(kMatrices); i-- > 0;)  // in any order
    writer.write(random_matrix(kMatrices[i], i, with_input));
  writer.commit();
}

void expect_matrices(const std::string& path, bool with_input) {
  const auto file = open_any(path);
  for (size_t i = 0; i < std::size(kMatrices); ++i) {
    const auto stored = find_nvfp4(*file, kMatrices[i], top_of(path));
    ASSERT_TRUE(stored.has_value()) << path << kMatrices[i];
    const Nvfp4Matrix found = read_nvfp4(*stored, kMatrices[i]);
    const Nvfp4Matrix expected = random_matrix(kMatrices[i], i, with_input);
    EXPECT_EQ(found.codes, expected.codes);
    EXPECT_EQ(found.scales, expected.scales);
    EXPECT_EQ(found.multiplier, expected.multiplier);
    EXPECT_EQ(found.input_multiplier, expected.input_multiplier);
  }
}

TEST(ModelWriter, FoldersOfEveryDialect) {
  const TempFolder root;
  const std::string source = plain_folder(root);
  for (const ModelDialect dialect :
       {ModelDialect::kModelOpt, ModelDialect::kCompressedTensors, ModelDialect::kFourOverSix}) {
    const std::string out = root.file(std::string(dialect_name(dialect)));
    quantize_all(source, out, {.dialect = dialect});
    expect_matrices(out, false);
    // what was not declared is as it was
    const auto before = open_any(source), after = open_any(out);
    const TensorInfo *a = before->find("model.embed_tokens.weight"),
                     *b = after->find("model.embed_tokens.weight");
    ASSERT_TRUE(a && b);
    EXPECT_TRUE(std::equal(a->data.begin(), a->data.end(), b->data.begin(), b->data.end()));
    EXPECT_EQ(text_of(out + "/tokenizer_config.json"), R"({"chat_template":"hi"})");
    EXPECT_EQ(text_of(out + "/LICENSE"), "as is");
    EXPECT_FALSE(fs::exists(out + "/optimizer.pt"));
    EXPECT_THAT(text_of(out + "/config.json"), AllOf(HasSubstr("\"kept\""), HasSubstr("lm_head")));
    EXPECT_EQ(fs::exists(out + "/hf_quant_config.json"), dialect == ModelDialect::kModelOpt);
  }
  EXPECT_THAT(names_in(root.path()),
              ElementsAre("compressed-tensors", "fouroversix", "modelopt", "plain"));
}

TEST(ModelWriter, InputScalesAreStoredWhenAllHaveThem) {
  const TempFolder root;
  const std::string source = plain_folder(root), out = root.file("m"), again = root.file("c");
  quantize_all(source, out, {.dialect = ModelDialect::kModelOpt}, true);
  expect_matrices(out, true);
  EXPECT_THAT(text_of(out + "/hf_quant_config.json"), HasSubstr("\"NVFP4\""));
  convert_model(out, again, {.dialect = ModelDialect::kCompressedTensors});
  EXPECT_THAT(text_of(again + "/config.json"), HasSubstr("\"local\""));
  const auto file = open_any(again);
  EXPECT_NEAR(find_nvfp4(*file, kMatrices[0], 0)->input_multiplier, 0.01f, 1e-9f);
  const std::string weights_only = root.file("w");
  quantize_all(source, weights_only, {.dialect = ModelDialect::kModelOpt});
  EXPECT_THAT(text_of(weights_only + "/hf_quant_config.json"), HasSubstr("\"W4A16_NVFP4\""));
}

// ModelOpt -> compressed-tensors -> GGUF -> fouroversix -> ModelOpt: the same bits.
TEST(ModelWriter, DialectsFollowOneAnotherWithoutALoss) {
  const TempFolder root;
  std::string at = root.file("start");
  quantize_all(plain_folder(root), at, {.dialect = ModelDialect::kModelOpt});
  const std::string first = at;
  int step = 0;
  for (const ModelDialect dialect :
       {ModelDialect::kCompressedTensors, ModelDialect::kGguf, ModelDialect::kFourOverSix,
        ModelDialect::kGguf, ModelDialect::kModelOpt}) {
    const std::string next = root.file("step" + std::to_string(step++));
    convert_model(at, next, {.dialect = dialect});
    if (dialect != ModelDialect::kGguf) expect_matrices(next, false);
    at = next;
  }
  // Norms became F32 on the way through GGUF; everything else is equal byte for byte.
  const auto before = open_any(first), after = open_any(at);
  ASSERT_EQ(before->tensors().size(), after->tensors().size());
  for (const TensorInfo& tensor : before->tensors()) {
    const TensorInfo* other = after->find(tensor.name);
    ASSERT_NE(other, nullptr) << tensor.name;
    if (tensor.dtype == other->dtype)
      EXPECT_TRUE(std::equal(tensor.data.begin(), tensor.data.end(), other->data.begin()))
          << tensor.name;
    else
      EXPECT_EQ(tensor.shape.size(), 1u) << tensor.name;
  }
}

// Scales of every size: what the writer stores survives the change of direction exactly.
TEST(ModelWriter, ScalesOfItsFilesSurviveEveryDirection) {
  const TempFolder root;
  const std::string source = plain_folder(root);
  const std::string a = root.file("a"), b = root.file("b"), c = root.file("c"), d = root.file("d");
  ModelWriter writer(source, a, {.dialect = ModelDialect::kModelOpt});
  for (const char* name : kMatrices) writer.declare_nvfp4(name, true);
  writer.begin();
  Noise noise(21);
  for (const char* name : kMatrices) {
    Nvfp4Matrix matrix = random_matrix(name, 1, true);
    matrix.multiplier = (1.5f + noise.next()) / 2688.0f;
    matrix.input_multiplier = (1.5f + noise.next()) / 26.0f;
    writer.write(matrix);
  }
  writer.commit();
  convert_model(a, b, {.dialect = ModelDialect::kCompressedTensors});
  convert_model(b, c, {.dialect = ModelDialect::kGguf});
  convert_model(c, d, {.dialect = ModelDialect::kModelOpt});
  const auto first = open_any(a), last = open_any(d);
  for (const TensorInfo& tensor : first->tensors()) {
    if (tensor.dtype == DType::kBF16) continue;
    const TensorInfo* other = last->find(tensor.name);
    ASSERT_NE(other, nullptr);
    EXPECT_TRUE(std::equal(tensor.data.begin(), tensor.data.end(), other->data.begin()))
        << tensor.name;
  }
}

// GGUF keeps q and k of the llama family with their rotary halves interleaved.
TEST(ModelWriter, RowsArePermutedInGguf) {
  const TempFolder root;
  const std::string source = plain_folder(root), out = root.file("m.gguf");
  quantize_all(source, out, {.dialect = ModelDialect::kGguf});
  const auto file = GgufFile::open(out);
  EXPECT_EQ(file->get_int("general.file_type"), 39);
  EXPECT_EQ(model_config_from_gguf(*file).heads, 2);
  const Nvfp4Matrix q = random_matrix(kMatrices[0], 0), v = random_matrix(kMatrices[2], 2);
  const auto stored_q = read_nvfp4(*find_nvfp4(*file, "blk.0.attn_q.weight", 0), "q");
  const auto stored_v = read_nvfp4(*find_nvfp4(*file, "blk.0.attn_v.weight", 0), "v");
  EXPECT_EQ(stored_v.codes, v.codes);
  constexpr int64_t kDim = 32, kRow = kHidden / 2;  // two heads of 32 rows; bytes a row
  for (int64_t head = 0; head < 2; ++head) {
    for (int64_t j = 0; j < kDim / 2; ++j) {
      for (int64_t half = 0; half < 2; ++half) {
        const auto* stored = &stored_q.codes[size_t((head * kDim + 2 * j + half) * kRow)];
        const auto* row = &q.codes[size_t((head * kDim + half * kDim / 2 + j) * kRow)];
        EXPECT_EQ(std::memcmp(stored, row, kRow), 0);
      }
    }
  }
  // as bf16 too, and back again
  const std::string plain = root.file("plain.gguf"), back = root.file("back");
  convert_model(source, plain, {.dialect = ModelDialect::kGguf});
  convert_model(plain, back, {.dialect = ModelDialect::kModelOpt});
  const auto before = open_any(source), after = open_any(back);
  for (const char* name : kMatrices) {
    const TensorInfo *a = before->find(name), *b = after->find(name);
    ASSERT_TRUE(a && b);
    EXPECT_TRUE(std::equal(a->data.begin(), a->data.end(), b->data.begin(), b->data.end())) << name;
  }
}

TEST(ModelWriter, AGgufFileIsCopiedByteForByte) {
  const TempFolder root;
  const std::string bytes = testing::tiny_llama_gguf();
  const std::string source = root.write("a.gguf", bytes), out = root.file("b.gguf");
  convert_model(source, out, {.dialect = ModelDialect::kGguf});
  EXPECT_EQ(text_of(out), bytes);
}

TEST(ModelWriter, ValuesInEveryType) {
  const TempFolder root;
  const std::string source = plain_folder(root), out = root.file("m.gguf");
  std::vector<float> values(kHidden * kHidden);
  Noise noise(9);
  for (float& value : values) value = noise.next();
  {
    ModelWriter writer(source, out, {.dialect = ModelDialect::kGguf});
    writer.declare_values(kMatrices[0], DType::kQ8_0);
    writer.declare_values(kMatrices[3], DType::kF16);
    writer.declare_values(kMatrices[4], DType::kF32);
    writer.declare_values("model.layers.0.input_layernorm.weight", DType::kF32);
    writer.begin();
    for (const char* name : {kMatrices[0], kMatrices[3], kMatrices[4]}) {
      writer.write_values(name, 32, std::span(values).subspan(32 * kHidden));
      writer.write_values(name, 0, std::span(values).first(32 * kHidden));
    }
    writer.write_values("model.layers.0.input_layernorm.weight", 0,
                        std::span(values).first(kHidden));
    writer.commit();
  }
  const auto file = GgufFile::open(out);
  std::vector<float> found(values.size());
  const auto read = [&](const char* name) {
    const TensorInfo* tensor = file->find(name);
    dequantize(tensor->dtype, tensor->data.data(), tensor->elements(), found.data());
    return tensor->dtype;
  };
  EXPECT_EQ(read("blk.0.ffn_gate.weight"), DType::kF32);
  EXPECT_EQ(found, values);
  EXPECT_EQ(read("blk.0.attn_output.weight"), DType::kF16);
  for (size_t i = 0; i < values.size(); ++i) EXPECT_NEAR(found[i], values[i], 1e-3f);
  EXPECT_EQ(read("blk.0.attn_q.weight"),
            DType::kQ8_0);  // with permuted rows: row 1 is the model's 16
  for (size_t i = 0; i < kHidden; ++i)
    EXPECT_NEAR(found[kHidden + i], values[16 * kHidden + i], 0.5f / 127 + 1e-3f);
  EXPECT_EQ(read("blk.0.attn_norm.weight"), DType::kF32);
  EXPECT_EQ(found[7], values[7]);
}

TEST(ModelWriter, AMatrixOfZerosIsReadBackAsZeros) {
  const TempFolder root;
  const std::string source = plain_folder(root);
  for (const ModelDialect dialect : {ModelDialect::kModelOpt, ModelDialect::kCompressedTensors,
                                     ModelDialect::kFourOverSix, ModelDialect::kGguf}) {
    const std::string out = root.file(std::string(dialect_name(dialect)));
    ModelWriter writer(source, out, {.dialect = dialect});
    writer.declare_nvfp4(kMatrices[2], false);
    writer.begin();
    writer.write({kMatrices[2], kHidden, kHidden, std::vector<uint8_t>(kHidden * kHidden / 2, 0),
                  std::vector<uint8_t>(kHidden * kHidden / 16, 0), 0.0f});
    writer.commit();
    const auto file = open_any(out);
    const bool gguf = dialect == ModelDialect::kGguf;
    const auto stored = find_nvfp4(*file, gguf ? "blk.0.attn_v.weight" : kMatrices[2], top_of(out));
    ASSERT_TRUE(stored.has_value());
    EXPECT_GT(stored->multiplier, 0.0f);
    EXPECT_NO_THROW(read_nvfp4(*stored, "v"));
  }
}

// --- whole or not at all
// --------------------------------------------------------------------------

TEST(ModelWriter, NothingIsLeftBehind) {
  const TempFolder root;
  const std::string source = plain_folder(root);
  for (const ModelDialect dialect : {ModelDialect::kModelOpt, ModelDialect::kGguf}) {
    const std::string out = root.file("out");
    {
      ModelWriter abandoned(source, out, {.dialect = dialect});
      abandoned.declare_nvfp4(kMatrices[0], false);
      abandoned.begin();
      abandoned.write(random_matrix(kMatrices[0], 0));
    }
    EXPECT_THAT(names_in(root.path()), ElementsAre("plain"));
    {
      ModelWriter incomplete(source, out, {.dialect = dialect});
      incomplete.declare_nvfp4(kMatrices[0], false);
      incomplete.begin();
      EXPECT_THAT(refusal([&] { incomplete.commit(); }), HasSubstr("declared but not written"));
    }
    EXPECT_THAT(names_in(root.path()), ElementsAre("plain"));
  }
}

class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() { setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_{};
};

// A file that may not grow ends like a full disk: an error and nothing else, not even a signal.
TEST(ModelWriter, FilesThatCannotBeWrittenLeaveNothingBehind) {
  const TempFolder root;
  const std::string source = plain_folder(root);
  for (const rlim_t limit : {0, 100, 5000, 9000}) {
    for (const ModelDialect dialect : {ModelDialect::kModelOpt, ModelDialect::kGguf}) {
      std::string message;
      try {
        const FileSizeLimit guard(limit);
        convert_model(source, root.file("out"), {.dialect = dialect});
      } catch (const Error& error) {
        message = error.what();
      }
      EXPECT_THAT(message, AllOf(HasSubstr(root.file("out")), HasSubstr("cannot be written")));
      EXPECT_THAT(names_in(root.path()), ElementsAre("plain"));
    }
  }
  EXPECT_THAT(refusal([&] { convert_model(source, root.file("no/such/folder"), {}); }),
              HasSubstr("cannot be written"));
}

TEST(ModelWriter, WhatExistsIsReplacedOnRequestOnly) {
  const TempFolder root;
  const std::string source = plain_folder(root), out = root.file("out"),
                    file = root.file("out.gguf");
  convert_model(source, out, {.dialect = ModelDialect::kModelOpt});
  convert_model(source, file, {.dialect = ModelDialect::kGguf});
  EXPECT_THROW(convert_model(source, out, {}), UsageError);
  EXPECT_THROW(convert_model(source, file, {.dialect = ModelDialect::kGguf}), UsageError);
  EXPECT_THROW(convert_model(source, file, {.overwrite = true}), UsageError);  // a file, no folder
  root.write("out/left.over", "x");
  quantize_all(source, out + "/", {.overwrite = true});
  quantize_all(source, file, {.dialect = ModelDialect::kGguf, .overwrite = true});
  expect_matrices(out, false);
  EXPECT_FALSE(fs::exists(out + "/left.over"));
  EXPECT_EQ(GgufFile::open(file)->get_int("general.file_type"), 39);
  fs::create_directory(root.file("empty"));
  EXPECT_NO_THROW(convert_model(source, root.file("empty"), {}));
  EXPECT_THAT(names_in(root.path()), ElementsAre("empty", "out", "out.gguf", "plain"));
}

TEST(ModelWriter, MistakesAreNamed) {
  const TempFolder root;
  const std::string source = plain_folder(root);
  ModelWriter writer(source, root.file("out"), {.dialect = ModelDialect::kModelOpt});
  EXPECT_TRUE(writer.can_hold_nvfp4(48));
  EXPECT_FALSE(writer.can_hold_nvfp4(24));
  EXPECT_THAT(refusal([&] { writer.declare_nvfp4("nothing.weight", false); }),
              HasSubstr("not found"));
  EXPECT_THAT(refusal([&] { writer.declare_nvfp4("model.norm.weight", false); }),
              HasSubstr("'model.norm.weight': found the shape"));
  EXPECT_THAT(refusal([&] { writer.declare_values(kMatrices[1], DType::kQ8_0); }),
              HasSubstr("type Q8_0 cannot be written in modelopt"));
  writer.declare_nvfp4(kMatrices[0], false);
  writer.declare_nvfp4(kMatrices[3], false);
  writer.begin();
  EXPECT_THAT(refusal([&] { writer.write(random_matrix(kMatrices[1], 1)); }),
              HasSubstr("was not declared"));
  Nvfp4Matrix wide = random_matrix(kMatrices[0], 1);
  wide.rows = 32;
  wide.k = 128;
  EXPECT_THAT(refusal([&] { writer.write(wide); }),
              HasSubstr("found [32, 128], expected [64, 64]"));
  writer.write(random_matrix(kMatrices[0], 0));
  EXPECT_THAT(refusal([&] { writer.write(random_matrix(kMatrices[0], 0)); }), HasSubstr("twice"));
  EXPECT_THROW(parse_dialect("onnx"), UsageError);
}

}  // namespace
}  // namespace longspur::io

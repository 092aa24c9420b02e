#include "io/files/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ctime>
#include <functional>
#include <random>

#include "io/files/gguf_builder.h"
#include "io/files/model_config.h"
#include "io/files/test_files.h"

namespace longspur::io {
namespace {

using testing::Bytes;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::refusal;
using testing::TempFolder;

// Each file is refused with the words that name its class, and with its path.
void expect_refused(const std::vector<std::string>& files, const std::string& words) {
  const TempFolder folder;
  for (size_t i = 0; i < files.size(); ++i) {
    SCOPED_TRACE(concat("file ", i));
    const std::string path = folder.write("bad.gguf", files[i]);
    const std::string message = refusal([&] { GgufFile::open(path); });
    EXPECT_THAT(message, HasSubstr(words));
    EXPECT_THAT(message, HasSubstr(path));
  }
}

std::unique_ptr<GgufFile> open_bytes(const TempFolder& folder, std::string_view bytes) {
  return GgufFile::open(folder.write("good.gguf", bytes));
}

std::string with_key(const std::string& key, uint32_t type, std::string_view value) {
  return GgufBuilder().key(key, type, value).str();
}

std::string array_value(uint32_t type, uint64_t count, std::string_view values) {
  return Bytes().put(type).put(count).raw(values).str();
}

template <class T>
std::string raw(T value) {
  return Bytes().put(value).str();
}

// A file with one tensor, its header as given and its data `bytes` long.
std::string one_tensor(const std::vector<uint64_t>& dims,
                       uint32_t type,
                       uint64_t offset,
                       size_t bytes) {
  return GgufBuilder().tensor("t", dims, type, offset).data(std::string(bytes, '\1')).str();
}

constexpr uint32_t kF32 = 0, kQ4_0 = 2, kQ8_0 = 8, kQ6_K = 14, kNVFP4 = 40;
constexpr uint32_t kUint32 = 4, kInt32 = 5, kFloat32 = 6, kBool = 7, kString = 8, kArray = 9,
                   kUint64 = 10;

// The classes are those of the table in docs/formats.md.

TEST(GgufRefuses, C01OtherFiles) {
  expect_refused(
      {std::string(24, '\0'), "GGML" + std::string(20, '\3'), "PK\3\4" + std::string(20, '\0'),
       "FUGG" + std::string(20, '\0'), "gguf" + std::string(20, '\0')},
      "found no GGUF magic");
  std::vector<std::string> versions;
  for (const uint32_t version : {0u, 1u, 4u, 0x10003u, 0xffffffffu})
    versions.push_back(GgufBuilder().version(version).str());
  expect_refused(versions, "version: found");
  expect_refused(
      {GgufBuilder().version(0x03000000u).str(), GgufBuilder().version(0x02000000u).str()},
      "big-endian");
}

TEST(GgufRefuses, C02Truncation) {
  const std::string good = GgufBuilder()
                               .key("general.name", kString, Bytes().text("a model").str())
                               .key("list", kArray, array_value(kUint32, 2, raw(uint64_t(7))))
                               .tensor("t", {32, 2}, kF32, 0)
                               .data(std::string(256, '\1'))
                               .str();
  const TempFolder folder;
  ASSERT_EQ(open_bytes(folder, good)->tensors().size(), 1u);
  for (size_t size = 1; size < good.size(); ++size) {
    const std::string path = folder.write("short.gguf", good.substr(0, size));
    EXPECT_THROW(GgufFile::open(path), Error) << size;
  }
}

TEST(GgufRefuses, C03Counts) {
  std::vector<std::string> files;
  for (const uint64_t count :
       {uint64_t(1), uint64_t(2), uint64_t(1) << 32, uint64_t(1) << 63, ~uint64_t(0)}) {
    files.push_back(GgufBuilder().counts(count, 0).str());
    files.push_back(GgufBuilder().counts(0, count).str());
  }
  expect_refused(files, " count: found ");
}

TEST(GgufRefuses, C04Strings) {
  std::vector<std::string> files;
  for (const uint64_t length :
       {uint64_t(1025), uint64_t(1) << 32, ~uint64_t(0), ~uint64_t(0) - 7}) {
    files.push_back(
        GgufBuilder().counts(0, 1).raw(Bytes().put(length).raw("key").pad(64).str()).str());
    files.push_back(with_key("k", kString, Bytes().put(length).raw("value").str()));
  }
  files.push_back(with_key("k", kArray, array_value(kString, 1, raw(~uint64_t(0)))));
  expect_refused(files, "bad.gguf: ");
  expect_refused({with_key("", kUint32, raw(1u)), with_key("a\nb", kUint32, raw(1u)),
                  with_key("\xff", kUint32, raw(1u)),
                  GgufBuilder().tensor("", {1}, kF32, 0).data("1234").str(),
                  GgufBuilder().tensor(std::string("t\0", 2), {1}, kF32, 0).data("1234").str()},
                 "expected UTF-8 text without control characters");
}

TEST(GgufRefuses, C05Arrays) {
  std::vector<std::string> files;
  for (uint32_t type = 0; type <= 12; ++type) {
    if (type == kArray) continue;
    for (const uint64_t count :
         {uint64_t(64), uint64_t(1) << 61, (uint64_t(1) << 62) + 1, ~uint64_t(0)})
      files.push_back(with_key("k", kArray, array_value(type, count, "12345678")));
  }
  expect_refused(files, "found an array of");
  std::string nested = array_value(kArray, 1, "");
  for (int depth = 0; depth < 10'000; ++depth) nested += array_value(kArray, 1, "");
  expect_refused({with_key("k", kArray, nested), with_key("k", kArray, array_value(kArray, 0, "")),
                  with_key("k", kArray, array_value(kArray, 1, array_value(kUint32, 1, raw(1u))))},
                 "nested array");
}

TEST(GgufRefuses, C06ValueTypes) {
  std::vector<std::string> files;
  for (const uint32_t type : {13u, 14u, 255u, 0x80000000u, 0xffffffffu}) {
    files.push_back(with_key("k", type, "12345678"));
    files.push_back(with_key("k", kArray, array_value(type, 1, "12345678")));
  }
  expect_refused(files, "found value type");
  expect_refused({with_key("k", kBool, "\2"), with_key("k", kBool, "\xff"),
                  with_key("k", kArray, array_value(kBool, 2, "\1\2"))},
                 "found a boolean of");
}

TEST(GgufRefuses, C07Alignment) {
  std::vector<std::string> files;
  for (const uint32_t alignment : {0u, 3u, 33u, 48u, 1u << 21, 0xffffffffu})
    files.push_back(with_key("general.alignment", kUint32, raw(alignment)));
  files.push_back(with_key("general.alignment", kInt32, raw(-32)));
  files.push_back(with_key("general.alignment", kUint64, raw(uint64_t(1) << 63)));
  files.push_back(with_key("general.alignment", kUint64, raw(~uint64_t(0))));
  files.push_back(with_key("general.alignment", kString, Bytes().text("32").str()));
  files.push_back(with_key("general.alignment", kFloat32, raw(32.0f)));
  files.push_back(with_key("general.alignment", kArray, array_value(kUint32, 1, raw(32u))));
  files.push_back(with_key("general.alignment", kBool, "\1"));
  expect_refused(files, "general.alignment");
  expect_refused(
      {GgufBuilder()
           .tensor("a", {1}, kF32, 0)
           .tensor("b", {1}, kF32, 8)
           .data(std::string(64, 'x'))
           .str(),
       one_tensor({1}, kF32, 1, 64), one_tensor({1}, kF32, 16, 64),
       one_tensor({1}, kF32, (uint64_t(1) << 63) + 1, 64), one_tensor({1}, kF32, 33, 64)},
      "expected a multiple of 32");
}

TEST(GgufRefuses, C08Duplicates) {
  const auto twice = [](const std::string& key) {
    return GgufBuilder().key(key, kUint32, raw(1u)).key(key, kUint32, raw(2u)).str();
  };
  expect_refused(
      {twice("k"), twice("general.alignment"), twice("general.architecture"),
       GgufBuilder().key("k", kBool, "\1").key("k", kString, Bytes().text("x").str()).str(),
       GgufBuilder()
           .tensor("t", {8}, kF32, 0)
           .tensor("t", {8}, kF32, 32)
           .data(std::string(64, 'x'))
           .str()},
      "twice");
}

TEST(GgufRefuses, C09Dimensions) {
  expect_refused({one_tensor({}, kF32, 0, 64), one_tensor({1, 1, 1, 1, 1}, kF32, 0, 64),
                  one_tensor(std::vector<uint64_t>(1000, 1), kF32, 0, 64)},
                 "dimensions, expected 1 to 4");
  expect_refused(
      {one_tensor({0}, kF32, 0, 64), one_tensor({4, 0}, kF32, 0, 64),
       one_tensor({uint64_t(1) << 63}, kF32, 0, 64), one_tensor({~uint64_t(0), 1}, kF32, 0, 64)},
      "found a dimension of");
  expect_refused({one_tensor({uint64_t(1) << 62}, kF32, 0, 64),
                  one_tensor({uint64_t(1) << 32, uint64_t(1) << 32}, kF32, 0, 64),
                  one_tensor({uint64_t(1) << 31, uint64_t(1) << 31, 2}, kF32, 0, 64),
                  one_tensor({32, uint64_t(1) << 58, 32}, kQ8_0, 0, 64),
                  one_tensor({0x100000000, 0x100000000, 0x100000000, 0x100000000}, kQ4_0, 0, 64)},
                 "its size overflows");
  expect_refused({one_tensor({16, 2}, kQ4_0, 0, 64), one_tensor({33}, kQ8_0, 0, 64),
                  one_tensor({128, 2}, kQ6_K, 0, 420), one_tensor({32}, kNVFP4, 0, 64),
                  one_tensor({1, 32}, kQ4_0, 0, 64)},
                 "expected a multiple of");
}

TEST(GgufRefuses, C10TensorTypes) {
  std::vector<std::string> files;
  // dropped, unsupported, unknown and negative ids
  for (const uint32_t type :
       {4u, 5u, 9u, 15u, 31u, 36u, 39u, 41u, 1000u, 0x7fffffffu, 0x80000000u, 0xffffffffu})
    files.push_back(one_tensor({256}, type, 0, 2048));
  expect_refused(files, "found type id");
}

TEST(GgufRefuses, C11TensorsOutsideTheFile) {
  expect_refused(
      {one_tensor({17}, kF32, 0, 64), one_tensor({8}, kF32, 64, 64),
       one_tensor({8}, kF32, uint64_t(1) << 62, 64), one_tensor({8}, kF32, ~uint64_t(0) - 31, 64),
       one_tensor({uint64_t(1) << 40}, kF32, 0, 64), one_tensor({32}, kQ8_0, 0, 33),
       one_tensor({uint64_t(1) << 60}, kF32, 0, 64), one_tensor({8}, kF32, 0, 0)},
      "expected them inside the file's");
}

TEST(GgufRefuses, C12OverlappingTensors) {
  const auto two = [](uint64_t first, uint64_t second, size_t bytes) {
    return GgufBuilder()
        .tensor("a", {16}, kF32, first)
        .tensor("b", {16}, kF32, second)
        .data(std::string(bytes, 'x'))
        .str();
  };
  expect_refused(
      {two(0, 0, 64), two(0, 32, 96), two(32, 0, 96), two(64, 32, 128), two(128, 96, 256)},
      "overlap at byte");
}

TEST(GgufRefuses, PartsOfModels) {
  expect_refused({with_key("split.count", 2, raw(uint16_t(3)))}, "merge the parts");
  const TempFolder folder;
  EXPECT_NE(open_bytes(folder, with_key("split.count", 2, raw(uint16_t(1)))), nullptr);
}

TEST(GgufRefuses, WhatIsNoFile) {
  const TempFolder folder;
  EXPECT_THAT(refusal([&] { GgufFile::open(folder.file("none")); }), HasSubstr("cannot be opened"));
  EXPECT_THAT(refusal([&] { GgufFile::open(folder.path().string()); }), HasSubstr("regular file"));
  EXPECT_THAT(refusal([&] { GgufFile::open(folder.write("empty", "")); }), HasSubstr("empty file"));
}

TEST(Gguf, ReadsWhatIsThere) {
  const TempFolder folder;
  for (const uint32_t version : {2u, 3u}) {
    const auto file = open_bytes(folder, GgufBuilder()
                                             .version(version)
                                             .key("general.alignment", kUint32, raw(64u))
                                             .key("n", kInt32, raw(-5))
                                             .tensor("b", {3, 2}, kF32, 64)
                                             .tensor("a", {32}, kQ8_0, 0)
                                             .data(std::string(64, 'a') + std::string(24, 'b'), 64)
                                             .str());
    ASSERT_EQ(file->tensors().size(), 2u);
    const TensorInfo* b = file->find("b");
    EXPECT_EQ(b->shape, (std::vector<int64_t>{2, 3}));  // outermost first
    EXPECT_EQ(b->data.size(), 24u);
    EXPECT_EQ(std::to_integer<char>(b->data[0]), 'b');
    EXPECT_EQ(file->find("a")->data.size(), 34u);
    EXPECT_EQ(file->get_int("n"), -5);
    file->check_unchanged();
  }
  EXPECT_TRUE(open_bytes(folder, GgufBuilder().str())->tensors().empty());
}

// The file shrinks while its tensors are read: the process lives, and the loader notices.
TEST(Gguf, SurvivesTruncationWhileItIsRead) {
  const TempFolder folder;
  const std::string path = folder.write("good.gguf", one_tensor({1 << 16}, kF32, 0, 1 << 18));
  const auto file = GgufFile::open(path);
  std::filesystem::resize_file(path, 4096);
  const TensorInfo* tensor = file->find("t");
  std::vector<float> values(size_t(tensor->elements()), 1.0f);
  dequantize(tensor->dtype, tensor->data.data(), tensor->elements(), values.data());
  EXPECT_EQ(values.back(), 0.0f);
  EXPECT_THAT(refusal([&] { file->check_unchanged(); }), HasSubstr("found it truncated"));
}

TEST(Gguf, LooksUpByType) {
  const TempFolder folder;
  const auto file = open_bytes(
      folder, GgufBuilder()
                  .key("int", kInt32, raw(-5))
                  .key("big", kUint64, raw(~uint64_t(0)))
                  .key("float", kFloat32, raw(0.5f))
                  .key("bool", kBool, "\1")
                  .key("string", kString, Bytes().text("x").str())
                  .key("ints", kArray, array_value(kInt32, 2, Bytes().put(1).put(-1).str()))
                  .key("bigs", kArray, array_value(kUint64, 1, raw(~uint64_t(0))))
                  .key("floats", kArray, array_value(kFloat32, 1, raw(2.5f)))
                  .key("strings", kArray, array_value(kString, 1, Bytes().text("y").str()))
                  .str());
  EXPECT_EQ(file->get_int("int"), -5);
  EXPECT_EQ(file->get_int("none", 7), 7);
  EXPECT_EQ(file->get_float("float"), 0.5);
  EXPECT_EQ(file->get_float("int"), -5.0);
  EXPECT_EQ(file->get_float("none", 1.5), 1.5);
  EXPECT_TRUE(file->get_bool("bool", false));
  EXPECT_TRUE(file->get_bool("none", true));
  EXPECT_EQ(file->get_string("string"), "x");
  EXPECT_EQ(file->get_string("none", "z"), "z");
  EXPECT_EQ(file->get_ints("ints"), (std::vector<int64_t>{1, -1}));
  EXPECT_TRUE(file->get_ints("none").empty());
  EXPECT_EQ(file->get_floats("floats"), std::vector<double>{2.5});
  EXPECT_EQ(*file->find_strings("strings"), std::vector<std::string>{"y"});
  EXPECT_EQ(file->find_strings("none"), nullptr);
  const std::vector<std::pair<std::function<void()>, std::string>> refused = {
      {[&] { file->get_int("none"); }, "key 'none': missing"},
      {[&] { file->get_float("none"); }, "key 'none': missing"},
      {[&] { file->get_string("none"); }, "key 'none': missing"},
      {[&] { file->get_int("float"); }, "found a number, expected an integer"},
      {[&] { file->get_int("string", 1); }, "found a string, expected an integer"},
      {[&] { file->get_int("bool"); }, "found a boolean, expected an integer"},
      {[&] { file->get_int("ints"); }, "found an array of integers, expected an integer"},
      {[&] { file->get_int("big"); }, "expected at most 2^63 - 1"},
      {[&] { file->get_ints("bigs"); }, "expected at most 2^63 - 1"},
      {[&] { file->get_float("string"); }, "found a string, expected a number"},
      {[&] { file->get_bool("int", true); }, "expected a boolean"},
      {[&] { file->get_string("int"); }, "expected a string"},
      {[&] { file->get_string("strings", ""); }, "expected a string"},
      {[&] { file->find_strings("string"); }, "expected an array of strings"},
      {[&] { file->get_ints("floats"); }, "expected an array of integers"},
      {[&] { file->get_floats("ints"); }, "expected an array of numbers"},
  };
  for (const auto& [look_up, words] : refused) {
    const std::string message = refusal(look_up);
    EXPECT_THAT(message, HasSubstr(words));
    EXPECT_THAT(message, HasSubstr("good.gguf: key '"));
  }
}

// Checks that make loading slow have been taken back elsewhere; so there is a limit. CPU time, as
// machines are busy.
TEST(Gguf, OpensLargeVocabulariesQuickly) {
  constexpr uint64_t kTokens = 150'000, kMerges = 300'000;
  Bytes tokens, scores, types, merges;
  for (uint64_t i = 0; i < kTokens; ++i) {
    tokens.text("token" + std::to_string(i));
    scores.put(float(i));
    types.put(int32_t(1));
  }
  for (uint64_t i = 0; i < kMerges; ++i) merges.text("le ft" + std::to_string(i));
  GgufBuilder builder;
  builder.key("tokenizer.ggml.tokens", kArray, array_value(kString, kTokens, tokens.str()))
      .key("tokenizer.ggml.scores", kArray, array_value(kFloat32, kTokens, scores.str()))
      .key("tokenizer.ggml.token_type", kArray, array_value(kInt32, kTokens, types.str()))
      .key("tokenizer.ggml.merges", kArray, array_value(kString, kMerges, merges.str()));
  for (int i = 0; i < 1000; ++i) builder.values("tensor." + std::to_string(i), {1}, {1.0f});
  const TempFolder folder;
  const std::string path = folder.write("large.gguf", builder.str());
  double best = 1e9;
  for (int attempt = 0; attempt < 5; ++attempt) {
    const std::clock_t begin = std::clock();
    const auto file = GgufFile::open(path);
    best = std::min(best, double(std::clock() - begin) / CLOCKS_PER_SEC);
    ASSERT_EQ(file->find_strings("tokenizer.ggml.tokens")->size(), kTokens);
  }
  RecordProperty("cpu_seconds", std::to_string(best));
  EXPECT_LT(best, 4 * testing::kRefusalSeconds);  // 0.2 s, ten times that with sanitizers
}

// Damaged anywhere, a file is refused or read within its bounds (which the sanitizers watch).
TEST(Gguf, SurvivesDamage) {
  const std::string good = testing::tiny_llama_gguf();
  const TempFolder folder;
  const auto probe = [&](const std::string& bytes) {
    try {
      const auto file = open_bytes(folder, bytes);
      for (const TensorInfo& tensor : file->tensors()) {
        std::vector<float> values(size_t(tensor.elements()));
        dequantize(tensor.dtype, tensor.data.data(), tensor.elements(), values.data());
      }
      const ModelConfig config = model_config_from_gguf(*file);
      ASSERT_EQ(int64_t(config.sliding_window.size()), config.layers);
      generation_defaults_from_gguf(*file);
    } catch (const Error&) {
    }
  };
  probe(good);
  std::mt19937 random(7);
  const size_t header = good.find("blk.0.attn_norm") + 1000;
  for (size_t at = 0; at < header; ++at) {
    std::string bytes = good;
    bytes[at] = char(bytes[at] ^ (1 << (random() % 8)));
    probe(bytes);
    bytes[at] = char(0xff);
    probe(bytes);
  }
  for (int i = 0; i < 1000; ++i) {
    std::string bytes = good;
    for (int j = 0; j < 3; ++j) bytes[random() % bytes.size()] = char(random());
    probe(bytes);
  }
}

}  // namespace
}  // namespace longspur::io

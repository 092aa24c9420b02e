#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "io/files/tensor_file.h"
#include "io/files/test_files.h"

namespace longspur::io {
namespace {

using testing::Bytes;
using ::testing::HasSubstr;
using testing::refusal;
using testing::TempFolder;

std::string file_of(std::string_view header, std::string_view data) {
  return Bytes().put(uint64_t(header.size())).raw(header).raw(data).str();
}

std::string entry(const std::string& name,
                  const std::string& dtype,
                  const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

std::string one_tensor(const std::string& dtype,
                       const std::string& shape,
                       const std::string& offsets,
                       size_t bytes) {
  return file_of("{" + entry("a", dtype, shape, offsets) + "}", std::string(bytes, '\1'));
}

// Each file is refused with the words that name its rule.
void expect_refused(const std::vector<std::string>& files, const std::string& words) {
  const TempFolder folder;
  for (size_t i = 0; i < files.size(); ++i) {
    SCOPED_TRACE(concat("file ", i));
    const std::string path = folder.write("bad.safetensors", files[i]);
    const std::string message = refusal([&] { open_safetensors(path); });
    EXPECT_THAT(message, HasSubstr(words));
    EXPECT_THAT(message, HasSubstr(path));
  }
}

std::unique_ptr<TensorFile> open_bytes(const TempFolder& folder, std::string_view bytes) {
  return open_safetensors(folder.write("good.safetensors", bytes));
}

// The numbers of these suites' names are those of the table in docs/formats.md.

TEST(SafetensorsRefuses, R01FilesWithoutHeader) {
  expect_refused({"x", std::string(3, '\0'), std::string(7, '\0'), "{}"},
                 "header: found a file of");
  expect_refused({""}, "found an empty file");
}

TEST(SafetensorsRefuses, R02HugeHeaders) {
  std::vector<std::string> files;
  for (const uint64_t length :
       {uint64_t(100'000'001), uint64_t(1) << 32, uint64_t(1) << 63, ~uint64_t(0)})
    files.push_back(Bytes().put(length).raw("{}").str());
  expect_refused(files, "header length: found");
  expect_refused(files, "expected at most 100000000");
}

TEST(SafetensorsRefuses, R03HeadersBeyondTheFile) {
  std::vector<std::string> files;
  for (const uint64_t length : {uint64_t(3), uint64_t(4), uint64_t(1000), uint64_t(100'000'000)})
    files.push_back(Bytes().put(length).raw("{}").str());
  files.push_back(file_of("{}", "").substr(0, 9));
  expect_refused(files, "expected at most the file's");
}

TEST(SafetensorsRefuses, R04HeadersThatAreNotUtf8) {
  const auto named = [](const std::string& name) {
    return file_of("{" + entry(name, "U8", "[1]", "[0,1]") + "}", "x");
  };
  expect_refused({named("\xff"), named("a\xc3"), named("\xed\xa0\x80"), named("\xc0\xaf"),
                  named("\xf4\x90\x80\x80"), named("\x80")},
                 "not UTF-8");
}

TEST(SafetensorsRefuses, R05HeadersWithoutBrace) {
  expect_refused({file_of("", ""), file_of(" {}", ""), file_of("[]", ""), file_of("\"{}\"", ""),
                  file_of("null", ""), file_of(std::string("\0{}", 3), "")},
                 "found no '{' at its start");
}

TEST(SafetensorsRefuses, R06InvalidJson) {
  std::vector<std::string> files;
  for (const char* header :
       {"{", "{]", "{\"a\"}", "{\"a\":", "{}{}", "{} x", "{'a':1}", "{\"__metadata__\":{},}",
        "{\"a\\q\":{}}", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1e999]}}"}) {
    files.push_back(file_of(header, ""));
  }
  files.push_back(file_of(std::string("{}\0{", 4), ""));
  files.push_back(file_of(std::string("{}\0", 3), ""));
  files.push_back(file_of("{\"a\nb\":{}}", ""));
  expect_refused(files, "header: found invalid JSON");
}

TEST(SafetensorsRefuses, R06WrongTypes) {
  std::vector<std::string> files;
  for (const char* value : {"1", "null", "true", "[]", "\"x\"", "-1", "1.5"})
    files.push_back(file_of(concat("{\"a\":", value, "}"), ""));
  for (const char* dtype : {"1", "null", "[]", "{}", "false"}) {
    files.push_back(file_of(
        concat("{\"a\":{\"dtype\":", dtype, ",\"shape\":[1],\"data_offsets\":[0,1]}}"), "x"));
  }
  for (const char* list : {"1", "\"1\"", "null", "{}", "[[1]]", "[\"1\"]", "[null]", "[-1]",
                           "[1.0]", "[1e2]", "[true]", "[{}]", "[18446744073709551616]"}) {
    files.push_back(file_of(
        concat("{\"a\":{\"dtype\":\"U8\",\"shape\":", list, ",\"data_offsets\":[0,1]}}"), "x"));
    files.push_back(file_of(
        concat("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":", list, "}}"), "x"));
  }
  for (const char* metadata : {"1", "null", "[]", "\"x\"", "{\"k\":1}", "{\"k\":null}",
                               "{\"k\":{}}", "{\"k\":[]}", "{\"k\":true}"}) {
    files.push_back(file_of(concat("{\"__metadata__\":", metadata, "}"), ""));
  }
  expect_refused(files, ": found ");
  expect_refused(files, ", expected a");
}

TEST(SafetensorsRefuses, R06MissingAndUnknownFields) {
  expect_refused({file_of("{\"a\":{}}", ""), file_of("{\"a\":{\"dtype\":\"F32\"}}", ""),
                  file_of("{\"a\":{\"dtype\":\"F32\",\"shape\":[]}}", ""),
                  file_of("{\"a\":{\"shape\":[],\"data_offsets\":[0,0]}}", "")},
                 ": missing");
  expect_refused({file_of("{\"a\":{\"strides\":[1]}}", ""), file_of("{\"a\":{\"\":[1]}}", "")},
                 "expected dtype, shape and data_offsets");
}

TEST(SafetensorsRefuses, R06DepthAndDimensions) {
  const std::string deep(100'000, '[');
  expect_refused(
      {file_of("{\"a\":" + deep, ""), file_of("{\"a\":{\"dtype\":\"U8\",\"shape\":" + deep, "")},
      ": found an array");
  std::string many = "[1";
  for (int i = 0; i < 32; ++i) many += ",1";
  expect_refused({one_tensor("U8", many + "]", "[0,1]", 1)}, "shape: found more than 32");
}

TEST(SafetensorsRefuses, R07DuplicateKeys) {
  const std::string a = entry("a", "U8", "[1]", "[0,1]");
  expect_refused(
      {file_of("{" + a + "," + a + "}", "x"),
       file_of("{" + a + "," + entry("\\u0061", "U8", "[1]", "[1,2]") + "}", "xx"),
       file_of("{\"__metadata__\":{},\"__metadata__\":{}}", ""),
       file_of("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", ""),
       file_of("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
               "x"),
       file_of("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"shape\":[1],\"data_offsets\":[0,1]}}",
               "x")},
      "twice");
}

TEST(SafetensorsRefuses, R08UnknownTypes) {
  expect_refused(
      {one_tensor("F128", "[1]", "[0,16]", 16), one_tensor("", "[1]", "[0,1]", 1),
       one_tensor("f32", "[1]", "[0,4]", 4), one_tensor("F32 ", "[1]", "[0,4]", 4),
       one_tensor("Q4_0", "[32]", "[0,18]", 18), one_tensor("F32\\u0000", "[1]", "[0,4]", 4)},
      "dtype: found");
}

TEST(SafetensorsRefuses, R09HolesAndOverlaps) {
  const auto two = [](const std::string& first, const std::string& second, size_t bytes) {
    return file_of(
        "{" + entry("a", "U8", "[4]", first) + "," + entry("b", "U8", "[4]", second) + "}",
        std::string(bytes, 'x'));
  };
  expect_refused({two("[0,4]", "[3,7]", 8), two("[0,4]", "[0,4]", 4), two("[2,6]", "[0,4]", 6),
                  two("[1,5]", "[0,4]", 8)},
                 "an overlap at byte");
  expect_refused({two("[0,4]", "[5,9]", 9), two("[1,5]", "[5,9]", 9), two("[4,8]", "[12,16]", 16),
                  one_tensor("U8", "[4]", "[4,8]", 8)},
                 "a hole at byte");
  // an empty tensor in the middle of another one
  expect_refused({file_of("{" + entry("a", "U8", "[8]", "[0,8]") + "," +
                              entry("b", "U8", "[0]", "[4,4]") + "}",
                          std::string(8, 'x'))},
                 "an overlap");
}

TEST(SafetensorsRefuses, R09Offsets) {
  expect_refused(
      {one_tensor("U8", "[1]", "[1,0]", 1), one_tensor("U8", "[0]", "[1,0]", 1),
       one_tensor("U8", "[1]", "[9223372036854775807,0]", 1), one_tensor("U8", "[4]", "[4,0]", 4)},
      "expected begin <= end");
  expect_refused({one_tensor("U8", "[1]", "[]", 1), one_tensor("U8", "[1]", "[0]", 1)},
                 "expected [begin, end]");
  expect_refused({one_tensor("U8", "[1]", "[0,1,1]", 1)}, "data_offsets: found more than 2");
}

TEST(SafetensorsRefuses, R10ShapesThatOverflow) {
  expect_refused({one_tensor("F32", "[4611686018427387904]", "[0,0]", 0),
                  one_tensor("F32", "[4294967296,4294967296]", "[0,0]", 0),
                  one_tensor("F64", "[9223372036854775807,9223372036854775807]", "[0,0]", 0),
                  one_tensor("U8", "[9223372036854775807,2]", "[0,1]", 1),
                  one_tensor("F4", "[9223372036854775807,2,2]", "[0,1]", 1),
                  one_tensor("F6_E2M3", "[4611686018427387904]", "[0,0]", 0)},
                 "overflows");
}

TEST(SafetensorsRefuses, R11SizesThatDisagree) {
  expect_refused({one_tensor("F32", "[1]", "[0,3]", 3), one_tensor("F32", "[2]", "[0,4]", 4),
                  one_tensor("F16", "[2,3]", "[0,24]", 24), one_tensor("U8", "[]", "[0,0]", 0),
                  one_tensor("U8", "[0]", "[0,1]", 1), one_tensor("F4", "[4]", "[0,4]", 4)},
                 "from dtype and shape");
  expect_refused(
      {one_tensor("F4", "[3]", "[0,1]", 1), one_tensor("F4", "[1]", "[0,1]", 1),
       one_tensor("F6_E2M3", "[2]", "[0,1]", 1), one_tensor("F6_E3M2", "[3,3]", "[0,6]", 6)},
      "to end on a byte");
}

TEST(SafetensorsRefuses, R12DataThatDoesNotEndWithTheFile) {
  expect_refused({one_tensor("U8", "[4]", "[0,4]", 5), one_tensor("U8", "[4]", "[0,4]", 4000),
                  file_of("{}", "x"), file_of("{\"__metadata__\":{\"a\":\"b\"}}", "PK\3\4")},
                 "bytes behind the last tensor");
  expect_refused({one_tensor("U8", "[4]", "[0,4]", 3), one_tensor("U8", "[4]", "[0,4]", 0),
                  one_tensor("F32", "[1000000]", "[0,4000000]", 100),
                  one_tensor("U8", "[9223372036854775807]", "[0,9223372036854775807]", 1)},
                 "bytes of data");
}

TEST(Safetensors, R13AcceptsScalarsAndEmptyTensors) {
  const TempFolder folder;
  EXPECT_TRUE(open_bytes(folder, file_of("{}", ""))->tensors().empty());
  EXPECT_TRUE(open_bytes(folder, file_of("{}   ", ""))->tensors().empty());
  const auto scalar = open_bytes(folder, one_tensor("F32", "[]", "[0,4]", 4));
  EXPECT_EQ(scalar->find("a")->elements(), 1);
  EXPECT_TRUE(scalar->find("a")->shape.empty());
  const auto empty = open_bytes(folder, one_tensor("F32", "[3,0,5]", "[0,0]", 0));
  EXPECT_EQ(empty->find("a")->elements(), 0);
  EXPECT_EQ(empty->find("a")->data.size(), 0u);
  // NaN is a value like any other
  const auto nan = open_bytes(
      folder, file_of("{" + entry("n", "F32", "[1]", "[0,4]") + "}", "\xff\xff\xff\xff"));
  EXPECT_NE(nan->find("n"), nullptr);
}

TEST(Safetensors, ReadsWhatIsThere) {
  const TempFolder folder;
  const std::string header =
      "{\"__metadata__\":{\"format\":\"pt\"}," + entry("b", "F16", "[2,3]", "[4,16]") + "," +
      entry("a\\u00e9", "I32", "[1]", "[0,4]") + "," + entry("e", "BOOL", "[0]", "[4,4]") + "," +
      entry("f", "F4", "[2,3]", "[16,19]") + "}  ";
  const std::string bytes = file_of(header, "0123456789abcdefXYZ");
  const auto file = open_bytes(folder, bytes);
  ASSERT_EQ(file->tensors().size(), 4u);
  EXPECT_EQ(file->tensors()[0].name, "b");  // file order, not that of the data
  const TensorInfo* b = file->find("b");
  EXPECT_EQ(b->dtype, DType::kF16);
  EXPECT_EQ(b->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(std::memcmp(b->data.data(), "456789abcdef", 12), 0);
  EXPECT_NE(file->find("a\xc3\xa9"), nullptr);
  EXPECT_EQ(file->find("c"), nullptr);
  EXPECT_EQ(file->find("f")->data.size(), 3u);
  EXPECT_EQ(file->file_bytes(), int64_t(bytes.size()));
}

// A damaged header is refused, or describes the same data: the bytes of each tensor and their
// meaning are as they were, though names and free text may differ.
TEST(Safetensors, EveryBitOfTheHeaderMatters) {
  const TempFolder folder;
  const std::string header = "{\"__metadata__\":{\"format\":\"pt\"}," +
                             entry("model.embed", "BF16", "[3,4]", "[0,24]") + "," +
                             entry("model.norm", "F32", "[5]", "[24,44]") + "}";
  std::string data;
  for (int i = 0; i < 44; ++i) data += char(i * 37);
  const std::string good = file_of(header, data);
  int accepted = 0, refused = 0;
  const auto probe = [&](const std::string& bytes) {
    try {
      const auto file = open_bytes(folder, bytes);
      ++accepted;
      size_t total = 0;
      for (const TensorInfo& tensor : file->tensors()) {
        ASSERT_GE(tensor.elements(), 0);
        total += tensor.data.size();
      }
      // whatever a flipped bit made of the header, it accounts for every byte of the data
      uint64_t length = 0;
      std::memcpy(&length, bytes.data(), 8);
      ASSERT_EQ(total, bytes.size() - 8 - size_t(length));
    } catch (const Error&) {
      ++refused;
    }
  };
  for (size_t at = 0; at < 8 + header.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bytes = good;
      bytes[at] = char(bytes[at] ^ (1 << bit));
      probe(bytes);
    }
  }
  std::mt19937 random(20240229);
  for (int i = 0; i < 1000; ++i) {
    std::string bytes = good;
    bytes[random() % bytes.size()] = char(random());
    if (random() % 2) bytes.resize(random() % bytes.size() + 1);
    probe(bytes);
  }
  EXPECT_GT(refused, accepted);
  for (size_t size = 1; size < good.size(); ++size) {
    const std::string path = folder.write("short.safetensors", good.substr(0, size));
    EXPECT_THROW(open_safetensors(path), Error) << size;
  }
}

TEST(Safetensors, NamesInMessagesAreHarmless) {
  const TempFolder folder;
  const std::string name = "\\u001b[2J\\n" + std::string(5000, 'n');
  expect_refused({file_of("{" + entry(name, "X", "[1]", "[0,1]") + "}", "x")}, "\\x1b[2J\\x0a");
}

TEST(Safetensors, RefusesWhatIsNoFile) {
  const TempFolder folder;
  EXPECT_THAT(refusal([&] { open_safetensors(folder.file("none.safetensors")); }),
              HasSubstr("cannot be opened"));
  EXPECT_THAT(refusal([&] { open_safetensors(folder.path().string()); }),
              HasSubstr("found neither model.safetensors nor model.safetensors.index.json"));
  EXPECT_THAT(refusal([&] { open_safetensors("/dev/zero"); }),
              HasSubstr("expected a regular file"));
  const std::string pipe = folder.file("pipe");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_THAT(refusal([&] { open_safetensors(pipe); }), HasSubstr("expected a regular file"));
}

class Shards : public ::testing::Test {
 protected:
  Shards() {
    folder.write("m-1.safetensors", file_of("{" + entry("a", "U8", "[2]", "[0,2]") + "}", "aa"));
    folder.write("m-2.safetensors", file_of("{" + entry("b", "U8", "[3]", "[0,3]") + "}", "bbb"));
  }
  void index(std::string_view weight_map) {
    folder.write("model.safetensors.index.json", concat("{\"weight_map\":", weight_map, "}"));
  }
  std::unique_ptr<TensorFile> open() { return open_safetensors(folder.path().string()); }
  void expect_refused(std::string_view weight_map, const std::string& words) {
    SCOPED_TRACE(weight_map);
    index(weight_map);
    EXPECT_THAT(refusal([&] { open(); }), HasSubstr(words));
  }

  TempFolder folder;
};

TEST_F(Shards, AreOneModel) {
  index(R"({"a":"m-1.safetensors","b":"m-2.safetensors"})");
  const auto file = open();
  EXPECT_EQ(file->tensors().size(), 2u);
  EXPECT_EQ(file->find("b")->data.size(), 3u);
  EXPECT_EQ(std::to_integer<char>(file->find("a")->data[0]), 'a');
  file->check_unchanged();
}

TEST_F(Shards, R14RefusesNamesOutsideTheFolder) {
  const TempFolder outside;
  outside.write("m-1.safetensors", file_of("{" + entry("a", "U8", "[2]", "[0,2]") + "}", "aa"));
  const std::string words = "expected the plain name of a file";
  expect_refused(R"({"a":"../m-1.safetensors"})", words);
  expect_refused(concat(R"({"a":")", outside.file("m-1.safetensors"), R"("})"), words);
  expect_refused(R"({"a":"./m-1.safetensors"})", words);
  expect_refused(R"({"a":"sub/m-1.safetensors"})", words);
  expect_refused(R"({"a":".."})", words);
  expect_refused(R"({"a":""})", words);
  expect_refused(R"({"a":"m-1.safetensors/"})", words);
  expect_refused(R"({"a":"m-1.safetensors\u0000x"})", words);
  std::filesystem::create_symlink(outside.file("m-1.safetensors"), folder.path() / "link");
  expect_refused(R"({"a":"link"})", "found a link out of the folder");
  std::filesystem::create_directory_symlink(outside.path(), folder.path() / "dir");
  expect_refused(R"({"a":"dir/m-1.safetensors"})", words);
}

TEST_F(Shards, R14RefusesMissingAndDoubleTensors) {
  expect_refused(R"({"a":"m-1.safetensors","b":"m-3.safetensors"})", "missing, expected in");
  expect_refused(R"({"a":"m-1.safetensors","c":"m-2.safetensors"})", "tensor 'c': missing from");
  expect_refused(R"({"a":"m-2.safetensors","b":"m-2.safetensors"})", "tensor 'a': missing from");
  expect_refused(R"({"a":"m-2.safetensors","b":"m-1.safetensors"})", ": missing from");
  folder.write("m-3.safetensors", file_of("{" + entry("a", "U8", "[1]", "[0,1]") + "}", "x"));
  expect_refused(R"({"a":"m-1.safetensors","b":"m-2.safetensors","c":"m-3.safetensors"})", "twice");
  std::filesystem::create_symlink("link-2", folder.path() / "link-1");
  std::filesystem::create_symlink("link-1", folder.path() / "link-2");
  expect_refused(R"({"a":"link-1"})", "missing");
  expect_refused(R"({"a":"."})", "expected the plain name");
}

TEST_F(Shards, R14RefusesOtherShapesOfIndex) {
  for (const char* map : {"1", "[]", "null", "\"m-1.safetensors\"", "{}"})
    expect_refused(map, "weight_map: found");
  for (const char* shard : {"1", "null", "[\"m-1.safetensors\"]", "{}", "true"})
    expect_refused(concat("{\"a\":", shard, "}"), "expected a file name");
  expect_refused(R"({"a":"m-1.safetensors","a":"m-2.safetensors"})", "twice");
  for (const char* text : {"", "{", "[]", "{}", "nul", "{\"weight_map\":{}}x"}) {
    folder.write("model.safetensors.index.json", text);
    refusal([&] { open(); });
  }
}

// The layout of download caches: a folder of links into a folder of blobs.
TEST_F(Shards, MayBeLinkedToWhereTheIndexIs) {
  index(R"({"a":"one","b":"two"})");
  const TempFolder snapshot;
  namespace fs = std::filesystem;
  fs::create_symlink(folder.file("model.safetensors.index.json"),
                     snapshot.path() / "model.safetensors.index.json");
  fs::create_symlink(folder.file("m-1.safetensors"), snapshot.path() / "one");
  fs::create_symlink(folder.file("m-2.safetensors"), snapshot.path() / "two");
  EXPECT_EQ(open_safetensors(snapshot.path().string())->tensors().size(), 2u);
}

}  // namespace
}  // namespace longspur::io

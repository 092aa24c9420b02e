#include "io/files/safetensors_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>

#include "io/files/tensor_file.h"
#include "io/files/test_files.h"

namespace longspur::io {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::refusal;
using testing::TempFolder;

std::span<const std::byte> bytes_of(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

size_t files_in(const TempFolder& folder) {
  return size_t(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()));
}

TEST(SafetensorsWriter, RoundTrips) {
  const TempFolder folder;
  const std::string path = folder.file("f.safetensors");
  const std::vector<TensorToWrite> tensors = {{"b", DType::kF32, {1, 2}, bytes_of("12345678")},
                                              {"a\"\n", DType::kU8, {3}, bytes_of("abc")},
                                              {"none", DType::kF64, {0, 5}, {}},
                                              {"one", DType::kF16, {}, bytes_of("xy")}};
  write_safetensors(path, tensors, {{"key", "value"}});
  const auto file = open_safetensors(path);
  ASSERT_EQ(file->tensors().size(), tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorInfo& found = file->tensors()[i];
    EXPECT_EQ(found.name, tensors[i].name);
    EXPECT_EQ(found.dtype, tensors[i].dtype);
    EXPECT_EQ(found.shape, tensors[i].shape);
    EXPECT_TRUE(std::equal(found.data.begin(), found.data.end(), tensors[i].data.begin(),
                           tensors[i].data.end()));
  }
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file->tensors()[0].data.data()) % 8, 0u);
  EXPECT_EQ(files_in(folder), 1u);
}

TEST(SafetensorsWriter, ReplacesWholeFilesOnly) {
  const TempFolder folder;
  const std::string path = folder.write("f.safetensors", "old");
  const std::vector<TensorToWrite> tensors = {{"a", DType::kU8, {6}, {}}};
  {
    SafetensorsWriter writer(path, tensors, {});
    writer.append(bytes_of("abc"));
    EXPECT_EQ(fs::file_size(path), 3u);  // not touched yet
  }
  EXPECT_EQ(fs::file_size(path), 3u);  // given up: nothing happened, nothing is left behind
  EXPECT_EQ(files_in(folder), 1u);
  SafetensorsWriter writer(path, tensors, {});
  writer.append(bytes_of("abc"));
  writer.append(bytes_of("def"));
  writer.commit();
  EXPECT_EQ(open_safetensors(path)->find("a")->data.size(), 6u);
  EXPECT_EQ(files_in(folder), 1u);
}

TEST(SafetensorsWriter, TwoAtOnceDoNotMix) {
  const TempFolder folder;
  const std::string path = folder.file("f.safetensors");
  const std::vector<TensorToWrite> tensors = {{"a", DType::kU8, {3}, {}}};
  SafetensorsWriter first(path, tensors, {}), second(path, tensors, {});
  first.append(bytes_of("111"));
  second.append(bytes_of("222"));
  first.commit();
  second.commit();
  EXPECT_EQ(std::to_integer<char>(open_safetensors(path)->find("a")->data[0]), '2');
  EXPECT_EQ(files_in(folder), 1u);
}

TEST(SafetensorsWriter, KeepsTheUsualPermissions) {
  const TempFolder folder;
  write_safetensors(folder.file("f"), {}, {});
  const mode_t mask = umask(0);
  umask(mask);
  struct stat info {};
  ASSERT_EQ(stat(folder.file("f").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777u, 0666u & ~mask);
}

TEST(SafetensorsWriter, RefusesWhatItCannotWrite) {
  const TempFolder folder;
  const auto write = [&](const std::string& path, const std::vector<TensorToWrite>& tensors) {
    return refusal([&] { write_safetensors(path, tensors, {}); });
  };
  const std::string path = folder.file("f.safetensors");
  EXPECT_THAT(write(folder.file("none/f"), {}), HasSubstr("cannot be written: No such file"));
  EXPECT_THAT(write(path, {{"a", DType::kU8, {0}, {}}, {"a", DType::kU8, {0}, {}}}),
              HasSubstr("tensor 'a': found twice"));
  EXPECT_THAT(write(path, {{"a", DType::kQ4_0, {32}, {}}}), HasSubstr("cannot be stored"));
  EXPECT_THAT(write(path, {{"__metadata__", DType::kU8, {0}, {}}}), HasSubstr("reserved"));
  EXPECT_THAT(write(path, {{"\xff", DType::kU8, {0}, {}}}), HasSubstr("UTF-8"));
  EXPECT_THAT(write(path, {{"a", DType::kF32, {int64_t(1) << 40, int64_t(1) << 40}, {}}}),
              HasSubstr("overflows"));
  EXPECT_THAT(write(path, {{"a", DType::kF32, {-1}, {}}}), HasSubstr("shape"));
  EXPECT_EQ(files_in(folder), 0u);
}

// As on a full disk, but with a limit on the size of files: the error says so, no file appears.
TEST(SafetensorsWriter, ReportsFailedWrites) {
  const TempFolder folder;
  const std::string path = folder.file("f");
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  const rlimit small = {1000, old.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto previous = signal(SIGXFSZ, SIG_IGN);
  const std::string data(100'000, 'x');
  const std::string message = refusal([&] {
    write_safetensors(path,
                      std::vector<TensorToWrite>{{"a", DType::kU8, {100'000}, bytes_of(data)}}, {});
  });
  setrlimit(RLIMIT_FSIZE, &old);
  signal(SIGXFSZ, previous);
  EXPECT_THAT(message, HasSubstr("f: cannot be written: File too large"));
  EXPECT_EQ(files_in(folder), 0u);
}

}  // namespace
}  // namespace longspur::io

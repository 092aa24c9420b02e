#include "io/files/mapped_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <thread>

#include "io/files/printable.h"
#include "io/files/test_files.h"

namespace longspur::io {
namespace {

using ::testing::HasSubstr;
using testing::refusal;
using testing::TempFolder;

int64_t sum(std::span<const std::byte> bytes) {
  int64_t total = 0;
  for (const std::byte b : bytes) total += std::to_integer<int64_t>(b);
  return total;
}

TEST(MappedFile, ReadsAndStaysUnchanged) {
  const TempFolder folder;
  const MappedFile file(folder.write("f", "abc"));
  EXPECT_EQ(sum(file.bytes()), 'a' + 'b' + 'c');
  file.check_unchanged();
}

// Reading what another process cut off must not kill the process (SIGBUS), and must be noticed.
TEST(MappedFile, SurvivesTruncation) {
  const TempFolder folder;
  const std::string path = folder.write("f", std::string(1 << 20, '\1'));
  const MappedFile file(path);
  EXPECT_EQ(std::to_integer<int>(file.bytes()[0]), 1);
  std::filesystem::resize_file(path, 8192);
  EXPECT_EQ(sum(file.bytes()), 8192);
  EXPECT_THAT(refusal([&] { file.check_unchanged(); }), HasSubstr("found it truncated"));
  // put back to its old size it is still not what was opened
  std::filesystem::resize_file(path, 1 << 20);
  EXPECT_THAT(refusal([&] { file.check_unchanged(); }), HasSubstr("while it was being read"));
}

TEST(MappedFile, SurvivesTruncationInManyThreads) {
  const TempFolder folder;
  const std::string path = folder.write("f", std::string(1 << 20, '\1'));
  const MappedFile file(path), other(folder.write("g", std::string(1 << 16, '\1')));
  std::filesystem::resize_file(path, 4096);
  std::vector<std::thread> threads;
  std::vector<int64_t> sums(4);
  for (size_t i = 0; i < sums.size(); ++i)
    threads.emplace_back([&, i] { sums[i] = sum(file.bytes()) + sum(other.bytes()); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(sums, std::vector<int64_t>(4, 4096 + (1 << 16)));
  EXPECT_THROW(file.check_unchanged(), Error);
  other.check_unchanged();
}

TEST(MappedFile, NoticesRewriting) {
  const TempFolder folder;
  const std::string path = folder.write("f", "abc");
  const MappedFile file(path);
  std::filesystem::last_write_time(
      path, std::filesystem::file_time_type::clock::now() + std::chrono::seconds(2));
  EXPECT_THAT(refusal([&] { file.check_unchanged(); }), HasSubstr("found it changed"));
}

TEST(MappedFile, DoesNotMindReplacement) {
  const TempFolder folder;
  const std::string path = folder.write("f", "abc");
  const MappedFile file(path);
  std::filesystem::rename(folder.write("new", "xyz"), path);
  file.check_unchanged();
  EXPECT_EQ(std::to_integer<char>(file.bytes()[0]), 'a');
}

// A bus error that is none of ours ends the process as it always did.
TEST(MappedFileDeathTest, LeavesOtherSignalsAlone) {
  const TempFolder folder;
  const MappedFile file(folder.write("f", "abc"));
  EXPECT_DEATH(raise(SIGBUS), "");
  const std::string path = folder.write("g", "abc");
  const int fd = open(path.c_str(), O_RDONLY);
  const void* memory = mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
  std::filesystem::resize_file(path, 0);
  EXPECT_DEATH(EXPECT_EQ(sum({static_cast<const std::byte*>(memory), 1}), 0), "");
  munmap(const_cast<void*>(memory), 4096);
  close(fd);
}

std::string text(std::string_view shown_text) { return concat(shown(shown_text)); }

TEST(Shown, IsOneHarmlessLine) {
  EXPECT_EQ(text("blk.0.attn_q"), "'blk.0.attn_q'");
  EXPECT_EQ(text(""), "''");
  EXPECT_EQ(text("a\nb\x1b[31m\x7f"), "'a\\x0ab\\x1b[31m\\x7f'");
  EXPECT_EQ(text("gr\xc3\xbc\xc3\x9f"), "'gr\xc3\xbc\xc3\x9f'");
  EXPECT_EQ(text("\xc2\x9b\xff\xc3"), "'\\xc2\\x9b\\xff\\xc3'");
  EXPECT_EQ(text(std::string_view("\0", 1)), "'\\x00'");
  EXPECT_EQ(text(std::string(1000, 'x')), "'" + std::string(120, 'x') + "...'");
}

TEST(IsUtf8, KnowsTheEdges) {
  for (const char* good : {"", "a", "\xc2\x80", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
                           "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"})
    EXPECT_TRUE(is_utf8(good)) << shown(good);
  for (const char* bad :
       {"\x80", "\xc1\xbf", "\xc2", "\xc2\x41", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xe2\x82",
        "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff"})
    EXPECT_FALSE(is_utf8(bad)) << shown(bad);
}

}  // namespace
}  // namespace longspur::io

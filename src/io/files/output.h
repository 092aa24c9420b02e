// Output that appears whole or not at all: written under another name beside the target, synced,
// then renamed. What is abandoned leaves nothing behind.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace longspur::io {

// A new file of a size known in advance, written in any order. Errors name `shown_as`, the file
// that it is to become.
class OutputFile {
 public:
  // Reserves the space where the file system can, so that a full disk is noticed here.
  OutputFile(const std::string& path, const std::string& shown_as, int64_t bytes);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(int64_t offset, std::span<const std::byte> bytes);
  void close();  // after syncing to the disk

 private:
  [[noreturn]] void fail(int error) const;

  std::string shown_as_;
  int fd_ = -1;
};

void write_file(const std::string& path, const std::string& shown_as, std::string_view text);

// The place where a file or folder `target` comes into being.
class PendingOutput {
 public:
  enum class Kind { kFile, kFolder };
  // Throws UsageError when `target` exists (other than as an empty folder for a folder) and
  // overwrite is false, or is of the other kind. A folder is made at once.
  PendingOutput(const std::string& target, Kind kind, bool overwrite);
  ~PendingOutput();
  PendingOutput(const PendingOutput&) = delete;
  PendingOutput& operator=(const PendingOutput&) = delete;

  const std::string& path() const { return path_; }  // where to write for now
  const std::string& target() const { return target_; }

  // What was written must be closed. A folder that is replaced is removed once the new one stands.
  void commit();

 private:
  void replace_folder();

  std::string target_, path_;
  Kind kind_;
  bool committed_ = false;
};

}  // namespace longspur::io

// A read-only memory mapping of a regular file: lazy, shared with the page cache, unmapped at the
// end.
//
// When another process truncates a mapped file, the kernel answers a read beyond the new end with
// SIGBUS. A handler of this module puts zeros there instead and remembers it, so that the process
// lives and check_unchanged() can report it. A SIGBUS elsewhere goes to whoever handled it before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace longspur::io {

class MappedFile {
 public:
  // Throws Error naming the path when it is missing, not a regular file, empty or unreadable.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

  // Throws Error when the file was truncated or written since it was opened: bytes read in the
  // meantime may be of either version, or zeros. A file replaced by rename is unchanged.
  void check_unchanged() const;

 private:
  struct Stamp {
    int64_t size = 0, seconds = 0, nanoseconds = 0;  // the latter two: last modification
    bool operator==(const Stamp&) const = default;
  };
  Stamp stamp() const;

  std::string path_;
  int fd_ = -1;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  Stamp opened_;
  int watch_ = -1;  // entry in the SIGBUS handler's table
};

}  // namespace longspur::io

// A file in memory that readers open by path: one system call where a disk would need many.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <string>
#include <string_view>

#include "base/error.h"

namespace longspur::fuzz {

class MemoryFile {
 public:
  explicit MemoryFile(const char* name) : fd_(memfd_create(name, MFD_CLOEXEC)) {
    if (fd_ < 0) throw InternalError("memfd_create failed");
    path_ = concat("/proc/", getpid(), "/fd/", fd_);
  }
  ~MemoryFile() { close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  const std::string& path() const { return path_; }
  void assign(std::string_view bytes) const {
    const bool written = ftruncate(fd_, 0) == 0 &&
                         pwrite(fd_, bytes.data(), bytes.size(), 0) == ssize_t(bytes.size());
    if (!written) throw InternalError("a memory file cannot be written");
  }

 private:
  int fd_;
  std::string path_;
};

}  // namespace longspur::fuzz

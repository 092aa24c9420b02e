// A read-only memory mapping of a regular file: lazy, shared with the page cache, unmapped at the
// end.
//
// A file that another process truncates while it is mapped cannot be read beyond its new end (the
// kernel raises SIGBUS there); model files are to be replaced by renaming, never rewritten in
// place.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace longspur::io {

class MappedFile {
 public:
  // Throws Error naming the path when it is missing, not a regular file, empty or unreadable.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace longspur::io

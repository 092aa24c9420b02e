// For tests: folders that vanish, files built byte by byte, and a check that something is refused.
#pragma once

#include <gtest/gtest.h>

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace longspur::io::testing {

class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "longspur-XXXXXX").string();
    const char* made = mkdtemp(pattern.data());
    if (made == nullptr) throw InternalError("mkdtemp failed");
    path_ = made;
  }
  ~TempFolder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::string file(const std::string& name) const { return (path_ / name).string(); }
  std::string write(const std::string& name, std::string_view bytes) const {
    std::filesystem::remove(file(name));  // overwriting makes some file systems wait for the disk
    std::ofstream(file(name), std::ios::binary) << bytes;
    return file(name);
  }

 private:
  std::filesystem::path path_;
};

// Little-endian bytes, as both formats store them.
class Bytes {
 public:
  template <class T>
  Bytes& put(T value) {
    char raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof(T));
    out_.append(raw, sizeof(T));
    return *this;
  }
  Bytes& raw(std::string_view bytes) {
    out_ += bytes;
    return *this;
  }
  Bytes& text(std::string_view bytes) { return put(uint64_t(bytes.size())).raw(bytes); }  // GGUF
  Bytes& pad(size_t alignment) {
    out_.append((alignment - out_.size() % alignment) % alignment, '\0');
    return *this;
  }
  size_t size() const { return out_.size(); }
  const std::string& str() const { return out_; }

 private:
  std::string out_;
};

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr double kRefusalSeconds = 0.5;
#else
inline constexpr double kRefusalSeconds = 0.05;
#endif

// The message of the Error that `run` must throw within 50 ms (the best of some tries: machines
// are busy; ten times that with sanitizers). One line, whatever bytes the file put into it.
template <class F>
std::string refusal(F run) {
  std::string message;
  double best = 1e9;
  for (int attempt = 0; attempt < 5 && best > kRefusalSeconds; ++attempt) {
    const auto begin = std::chrono::steady_clock::now();
    try {
      run();
      ADD_FAILURE() << "accepted, expected an Error";
      return {};
    } catch (const Error& error) {
      message = error.what();
    } catch (const std::exception& error) {
      ADD_FAILURE() << "expected an Error, found another exception: " << error.what();
      return {};
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    best = std::min(best, took.count());
  }
  EXPECT_LT(best, kRefusalSeconds) << message;
  EXPECT_EQ(message.find_first_of("\n\r\x1b"), message.npos) << message;
  EXPECT_LT(message.size(), 2000u);
  return message;
}

}  // namespace longspur::io::testing

#include "app/cli/batch_output.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "app/cli/console.h"
#include "base/error.h"

namespace longspur::app::cli {

namespace {

constexpr auto kSyncEvery = std::chrono::seconds(1);

[[noreturn]] void fail(const std::string& path, int error) {
  throw Error(concat(path, ": cannot be written: ", std::strerror(error)));
}

}  // namespace

BatchOutput::BatchOutput(const std::string& path)
    : path_(path), last_sync_(std::chrono::steady_clock::now()) {
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail(path, errno);
  struct stat status = {};
  regular_ = ::fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode);
  if (!regular_) return;
  try {
    require(::flock(descriptor_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK, path,
            ": found it in use by another run, expected to be alone");
    read_finished();
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

BatchOutput::~BatchOutput() {
  if (regular_) ::fdatasync(descriptor_);
  ::close(descriptor_);
}

void BatchOutput::read_finished() {
  const std::string content = read_file(path_);
  int64_t number = 0;
  size_t begin = 0;
  for (size_t end; (end = content.find('\n', begin)) != std::string::npos; begin = end + 1)
    read_line(content.substr(begin, end - begin), ++number);
  size_ = int64_t(begin);
  if (::ftruncate(descriptor_, size_) != 0 || ::lseek(descriptor_, size_, SEEK_SET) != size_)
    fail(path_, errno);
}

void BatchOutput::read_line(const std::string& line, int64_t number) {
  const auto result = nlohmann::ordered_json::parse(line, nullptr, false);
  require(result.is_object() && result.contains("id") && result.contains("finish_reason"), path_,
          " line ", number, ": found no result of a run, expected a file that a run wrote");
  const bool fresh = finished_.insert(result["id"].dump()).second;
  require(fresh, path_, " line ", number, ": found id ", result["id"].dump(),
          " twice, expected once");
  if (result.contains("error")) ++failed_;
}

void BatchOutput::append(const nlohmann::ordered_json& result) {
  const std::string line = json_line(result);
  size_t done = 0;
  while (done < line.size()) {
    const ssize_t written = ::write(descriptor_, line.data() + done, line.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      const int error = errno;
      // Back to the last whole line; should that fail too, the next run drops the torn one.
      if (regular_ && ::ftruncate(descriptor_, size_) != 0) fail(path_, error);
      fail(path_, error);
    }
    done += size_t(written);
  }
  size_ += int64_t(line.size());
  if (std::chrono::steady_clock::now() - last_sync_ >= kSyncEvery) sync();
}

void BatchOutput::sync() {
  last_sync_ = std::chrono::steady_clock::now();
  // Where space is only promised at the write, the disk may turn out full here.
  if (regular_ && ::fdatasync(descriptor_) != 0 && errno != EINVAL) fail(path_, errno);
}

}  // namespace longspur::app::cli

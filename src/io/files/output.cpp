#include "io/files/output.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/error.h"

namespace longspur::io {

namespace fs = std::filesystem;

namespace {

[[noreturn]] void cannot_be_written(const std::string& path, int error) {
  throw Error(concat(path, ": cannot be written: ", std::strerror(error)));
}

// Beyond RLIMIT_FSIZE a write not only fails with EFBIG but also ends the process by SIGXFSZ,
// before anything could be cleaned up. This thread takes the signal back while it writes.
class FileSizeSignal {
 public:
  FileSizeSignal() {
    sigemptyset(&signal_);
    sigaddset(&signal_, SIGXFSZ);
    pthread_sigmask(SIG_BLOCK, &signal_, &before_);
  }
  ~FileSizeSignal() {
    const int error = errno;
    const timespec none{0, 0};
    if (!sigismember(&before_, SIGXFSZ)) sigtimedwait(&signal_, nullptr, &none);
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    errno = error;
  }
  FileSizeSignal(const FileSizeSignal&) = delete;
  FileSizeSignal& operator=(const FileSizeSignal&) = delete;

 private:
  sigset_t signal_, before_;
};

bool is_empty_folder(const fs::path& path) {
  std::error_code error;
  return fs::is_directory(path, error) && fs::is_empty(path, error);
}

// So that a rename survives a crash. Not every file system can; then it is as good as it gets.
void sync_folder(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  fsync(fd);
  close(fd);
}

std::string parent_of(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

}  // namespace

OutputFile::OutputFile(const std::string& path, const std::string& shown_as, int64_t bytes)
    : shown_as_(shown_as) {
  fd_ = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd_ < 0) cannot_be_written(shown_as_, errno);
  const FileSizeSignal guard;
  if (bytes == 0 || fallocate(fd_, 0, 0, bytes) == 0) return;
  const int error = errno;
  if (error != ENOSPC && error != EFBIG && error != EDQUOT) return;
  ::close(std::exchange(fd_, -1));  // a constructor that throws runs no destructor
  ::unlink(path.c_str());
  cannot_be_written(shown_as_, error);
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
}

void OutputFile::fail(int error) const { cannot_be_written(shown_as_, error); }

void OutputFile::write(int64_t offset, std::span<const std::byte> bytes) {
  LONGSPUR_ASSERT(fd_ >= 0 && offset >= 0);
  const FileSizeSignal guard;
  while (!bytes.empty()) {
    const ssize_t written = pwrite(fd_, bytes.data(), bytes.size(), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(errno);
    if (written == 0) fail(ENOSPC);
    bytes = bytes.subspan(size_t(written));
    offset += written;
  }
}

void OutputFile::close() {
  if (fsync(fd_) != 0) fail(errno);
  if (::close(std::exchange(fd_, -1)) != 0) fail(errno);
}

void write_file(const std::string& path, const std::string& shown_as, std::string_view text) {
  OutputFile file(path, shown_as, int64_t(text.size()));
  file.write(0, std::as_bytes(std::span(text.data(), text.size())));
  file.close();
}

PendingOutput::PendingOutput(const std::string& target, Kind kind, bool overwrite)
    : target_(target), kind_(kind) {
  while (target_.size() > 1 && target_.back() == '/') target_.pop_back();
  if (target_.empty()) throw UsageError("output: found an empty path, expected a name");
  std::error_code error;
  const fs::file_status status = fs::symlink_status(target_, error);
  if (fs::exists(status)) {
    const bool folder = fs::is_directory(status), wanted = kind == Kind::kFolder;
    if (folder != wanted || !(folder || fs::is_regular_file(status)))
      throw UsageError(concat(target_, ": found something that is no ", wanted ? "folder" : "file",
                              ", expected a free name or one to replace"));
    if (!overwrite && !(folder && is_empty_folder(target_)))
      throw UsageError(concat(target_, ": exists already, expected a free name"));
  }
  for (int attempt = 0;; ++attempt) {
    path_ = concat(target_, ".tmp-", getpid(), "-", attempt);
    if (kind == Kind::kFolder ? mkdir(path_.c_str(), 0777) == 0 : access(path_.c_str(), F_OK) != 0)
      return;
    if ((kind == Kind::kFolder && errno != EEXIST) || attempt == 1000)
      cannot_be_written(target_, errno);
  }
}

PendingOutput::~PendingOutput() {
  if (committed_) return;
  std::error_code error;
  fs::remove_all(path_, error);
}

void PendingOutput::replace_folder() {
  const std::string old = path_ + "-old";
  if (std::rename(target_.c_str(), old.c_str()) != 0) cannot_be_written(target_, errno);
  if (std::rename(path_.c_str(), target_.c_str()) != 0) {
    const int error = errno;
    std::rename(old.c_str(), target_.c_str());
    cannot_be_written(target_, error);
  }
  committed_ = true;
  std::error_code error;
  fs::remove_all(old, error);
}

void PendingOutput::commit() {
  std::error_code error;
  const bool folder = kind_ == Kind::kFolder;
  if (folder) sync_folder(path_);
  if (folder && fs::is_directory(target_, error) && !is_empty_folder(target_)) {
    replace_folder();
  } else if (std::rename(path_.c_str(), target_.c_str()) != 0) {
    cannot_be_written(target_, errno);
  }
  committed_ = true;
  sync_folder(parent_of(target_));
}

}  // namespace longspur::io

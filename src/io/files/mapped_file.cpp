#include "io/files/mapped_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>

#include "base/error.h"

namespace longspur::io {

namespace {

// Mappings that the SIGBUS handler looks after. Atomics only: a handler may not take locks.
struct Watch {
  std::atomic<bool> taken{false};
  std::atomic<uintptr_t> begin{0}, end{0};  // whole pages; begin 0: none
  std::atomic<bool> lost{false};            // a read went beyond the end of the file
};
constexpr int kWatches = 4096;  // more mappings than that at a time go unwatched
std::array<Watch, kWatches> watches;
struct sigaction previous_action;
uintptr_t page_size = 4096;

bool replace_by_zeros(Watch& watch, uintptr_t address) {
  const uintptr_t page = address & ~(page_size - 1), end = watch.end.load();
  void* zeros = mmap(reinterpret_cast<void*>(page), end - page, PROT_READ,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  if (zeros == MAP_FAILED) return false;
  watch.lost.store(true);
  return true;
}

bool is_lost_page(const siginfo_t& info) {
  if (info.si_code <= 0) return false;  // sent by a process: there is no address
  const auto address = reinterpret_cast<uintptr_t>(info.si_addr);
  for (Watch& watch : watches) {
    const uintptr_t begin = watch.begin.load();
    if (begin != 0 && address >= begin && address < watch.end.load())
      return replace_by_zeros(watch, address);
  }
  return false;
}

void on_bus_error(int signal, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  if (is_lost_page(*info)) {
    errno = saved_errno;
  } else if (previous_action.sa_flags & SA_SIGINFO) {
    previous_action.sa_sigaction(signal, info, context);
  } else if (previous_action.sa_handler != SIG_DFL && previous_action.sa_handler != SIG_IGN) {
    previous_action.sa_handler(signal);
  } else {
    sigaction(SIGBUS, &previous_action, nullptr);  // the access faults again, as without us
    if (info->si_code <= 0) raise(signal);
  }
}

void install_handler() {
  static std::once_flag once;
  std::call_once(once, [] {
    page_size = uintptr_t(sysconf(_SC_PAGESIZE));
    struct sigaction action {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &previous_action);
  });
}

int watch_pages(const std::byte* data, size_t size) {
  install_handler();
  for (int i = 0; i < kWatches; ++i) {
    Watch& watch = watches[size_t(i)];
    if (watch.taken.exchange(true)) continue;
    const auto begin = reinterpret_cast<uintptr_t>(data);
    watch.lost.store(false);
    watch.end.store((begin + size + page_size - 1) & ~(page_size - 1));
    watch.begin.store(begin);
    return i;
  }
  return -1;
}

void unwatch(int index) {
  if (index < 0) return;
  Watch& watch = watches[size_t(index)];
  watch.begin.store(0);
  watch.taken.store(false);
}

}  // namespace

// Undone by hand on failure: a constructor that throws runs no destructor.
MappedFile::MappedFile(const std::string& path) : path_(path) {
  // O_NONBLOCK: opening a named pipe must not wait for a writer
  fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd_ < 0) throw Error(concat(path, ": cannot be opened: ", std::strerror(errno)));
  try {
    struct stat info {};
    require(fstat(fd_, &info) == 0, path, ": ", std::strerror(errno));
    require(S_ISREG(info.st_mode), path, ": found something else, expected a regular file");
    require(info.st_size > 0, path, ": found an empty file");
    opened_ = stamp();
    size_ = size_t(opened_.size);
    void* memory = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd_, 0);
    require(memory != MAP_FAILED, path, ": cannot be mapped: ", std::strerror(errno));
    data_ = static_cast<const std::byte*>(memory);
  } catch (...) {
    close(fd_);
    throw;
  }
  watch_ = watch_pages(data_, size_);
}

MappedFile::~MappedFile() {
  unwatch(watch_);
  munmap(const_cast<std::byte*>(data_), size_);
  close(fd_);
}

MappedFile::Stamp MappedFile::stamp() const {
  struct stat info {};
  require(fstat(fd_, &info) == 0, path_, ": ", std::strerror(errno));
  return {info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec};
}

void MappedFile::check_unchanged() const {
  const Stamp now = stamp();
  const bool lost = watch_ >= 0 && watches[size_t(watch_)].lost.load();
  require(!lost && now == opened_, path_, ": found it ",
          now.size < opened_.size ? "truncated" : "changed",
          " while it was being read, expected it to stay as it was opened");
}

}  // namespace longspur::io

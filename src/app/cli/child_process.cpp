#include "app/cli/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "app/cli/interrupt.h"
#include "base/error.h"

namespace longspur::app::cli {

namespace {

void close_if_open(int& descriptor) {
  if (descriptor >= 0) ::close(descriptor);
  descriptor = -1;
}

// Both ends close on exec; spawn gives the child its copies.
struct Pipe {
  int read = -1, write = -1;

  Pipe() {
    int ends[2];
    require(::pipe2(ends, O_CLOEXEC) == 0, "pipe: ", std::strerror(errno));
    read = ends[0];
    write = ends[1];
  }
  ~Pipe() {
    close_if_open(read);
    close_if_open(write);
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
};

// Starts the program with its stdin and stdout replaced; our ignored signals are not passed on.
int spawn(const std::vector<std::string>& arguments, int in, int out) {
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in, STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t defaults;
  sigemptyset(&defaults);
  sigaddset(&defaults, SIGPIPE);
  sigaddset(&defaults, SIGXFSZ);
  posix_spawnattr_setsigdefault(&attributes, &defaults);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
  pid_t pid = -1;
  const int error = posix_spawnp(&pid, argv[0], &actions, &attributes, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  require(error == 0, arguments[0], ": cannot be run: ", std::strerror(error));
  return pid;
}

int exit_code(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& arguments) : name_(arguments.at(0)) {
  Pipe in, out;
  pid_ = spawn(arguments, in.read, out.write);
  stdin_ = std::exchange(in.write, -1);
  stdout_ = std::exchange(out.read, -1);
}

ChildProcess::~ChildProcess() {
  close_if_open(stdin_);
  close_if_open(stdout_);
  if (pid_ < 0) return;
  ::kill(pid_, SIGTERM);
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
}

void ChildProcess::write_line(const std::string& text) {
  const std::string line = text + "\n";
  for (size_t done = 0; done < line.size();) {
    const ssize_t count = ::write(stdin_, line.data() + done, line.size() - done);
    if (count < 0 && errno == EINTR) {
      check_interrupt();
      continue;
    }
    require(count > 0, name_, ": ended before it was asked: ", std::strerror(errno));
    done += size_t(count);
  }
}

void ChildProcess::close_stdin() { close_if_open(stdin_); }

bool ChildProcess::read_more() {
  char bytes[4096];
  for (;;) {
    const ssize_t count = ::read(stdout_, bytes, sizeof(bytes));
    if (count < 0 && errno == EINTR) {
      check_interrupt();
      continue;
    }
    require(count >= 0, name_, ": cannot be read from: ", std::strerror(errno));
    buffer_.append(bytes, size_t(count));
    return count > 0;
  }
}

std::string ChildProcess::read_line() {
  size_t end = buffer_.find('\n');
  while (end == std::string::npos) {
    const size_t before = buffer_.size();
    require(read_more(), name_, ": ended without an answer");
    end = buffer_.find('\n', before);
  }
  std::string line = buffer_.substr(0, end);
  buffer_.erase(0, end + 1);
  return line;
}

int ChildProcess::wait() {
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0) {
    require(errno == EINTR, name_, ": cannot be waited for: ", std::strerror(errno));
    check_interrupt();
  }
  pid_ = -1;
  return exit_code(status);
}

}  // namespace longspur::app::cli

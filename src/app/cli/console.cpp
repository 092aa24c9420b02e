#include "app/cli/console.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "app/cli/interrupt.h"
#include "base/error.h"

namespace longspur::app::cli {

namespace {

// False on an error, which is in errno.
bool write_all(int descriptor, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(descriptor, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    text.remove_prefix(size_t(written));
  }
  return true;
}

std::string read_all(int descriptor, const std::string& name) {
  std::string text;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t count = ::read(descriptor, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) {
      check_interrupt();
      continue;
    }
    require(count >= 0, name, ": cannot be read: ", std::strerror(errno));
    if (count == 0) return text;
    text.append(buffer, size_t(count));
  }
}

}  // namespace

void write_stdout(std::string_view text) {
  if (write_all(STDOUT_FILENO, text)) return;
  if (errno == EPIPE) throw BrokenPipe();
  throw Error(concat("stdout: cannot be written: ", std::strerror(errno)));
}

std::string json_line(const nlohmann::ordered_json& object) {
  return object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

void write_json(const nlohmann::ordered_json& object) { write_stdout(json_line(object)); }

void write_stderr(std::string_view text) { write_all(STDERR_FILENO, text); }

bool stdin_is_terminal() { return isatty(STDIN_FILENO) == 1; }
bool stdout_is_terminal() { return isatty(STDOUT_FILENO) == 1; }
bool stderr_is_terminal() { return isatty(STDERR_FILENO) == 1; }

std::string read_stdin() { return read_all(STDIN_FILENO, "stdin"); }

std::string read_file(const std::string& path) {
  if (path == "-") return read_stdin();
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  require(descriptor >= 0, path, ": cannot be read: ", std::strerror(errno));
  try {
    std::string text = read_all(descriptor, path);
    ::close(descriptor);
    return text;
  } catch (...) {
    ::close(descriptor);
    throw;
  }
}

void check_can_create(const std::string& path) {
  require(!std::filesystem::is_directory(path), path, ": found a folder, expected a file name");
  const std::string probe = concat(path, ".probe-", getpid());
  const int descriptor = ::open(probe.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  require(descriptor >= 0, path, ": cannot be written: ", std::strerror(errno));
  ::close(descriptor);
  ::unlink(probe.c_str());
}

std::string one_line(std::string_view text) {
  std::string line;
  for (const char c : text) line += static_cast<unsigned char>(c) < 32 || c == 127 ? ' ' : c;
  return line;
}

}  // namespace longspur::app::cli

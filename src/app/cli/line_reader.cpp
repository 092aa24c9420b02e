#include "app/cli/line_reader.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "app/cli/interrupt.h"
#include "base/error.h"

namespace longspur::app::cli {

LineReader::Result LineReader::next(std::string& line) {
  for (;;) {
    if (const size_t end = buffer_.find('\n'); end != std::string::npos) {
      line = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      if (line.ends_with('\r')) line.pop_back();
      return Result::kLine;
    }
    if (ended_) {
      if (buffer_.empty()) return Result::kEnd;
      line = std::exchange(buffer_, {});
      return Result::kLine;
    }
    if (pending_interrupt() != 0) return Result::kInterrupted;
    char bytes[4096];
    const ssize_t count = ::read(STDIN_FILENO, bytes, sizeof(bytes));
    if (count < 0 && errno == EINTR) continue;
    require(count >= 0, "stdin: cannot be read: ", std::strerror(errno));
    ended_ = count == 0;
    buffer_.append(bytes, size_t(count));
  }
}

}  // namespace longspur::app::cli

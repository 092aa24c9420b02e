#include "app/cli/progress.h"

#include <algorithm>

#include "app/cli/console.h"
#include "base/error.h"

namespace longspur::app::cli {

namespace {

constexpr auto kRedraw = std::chrono::milliseconds(100);  // on a terminal
constexpr auto kRepeat = std::chrono::seconds(10);        // in a log
constexpr int kBarWidth = 30;

}  // namespace

Progress::Progress(std::string what, bool quiet)
    : what_(std::move(what)), quiet_(quiet), terminal_(stderr_is_terminal()), last_(Clock::now()) {}

Progress::~Progress() { clear(); }

void Progress::update(double done, double total, const std::string& detail) {
  const auto now = Clock::now();
  if (quiet_ || now - last_ < (terminal_ ? Clock::duration(kRedraw) : Clock::duration(kRepeat)))
    return;
  last_ = now;
  const double share = total > 0 ? std::clamp(done / total, 0.0, 1.0) : 0.0;
  const std::string percent = std::to_string(int(share * 100)) + "%";
  if (!terminal_) {
    write_stderr(concat(what_, ": ", percent, ", ", detail, "\n"));
    return;
  }
  const int filled = int(share * kBarWidth);
  write_stderr(concat("\r\x1b[K", what_, " [", std::string(size_t(filled), '='),
                      std::string(size_t(kBarWidth - filled), ' '), "] ", percent, " ", detail));
  drawn_ = true;
}

void Progress::clear() {
  if (drawn_) write_stderr("\r\x1b[K");
  drawn_ = false;
}

}  // namespace longspur::app::cli

// Progress on stderr: a line that is redrawn on a terminal, an occasional line elsewhere.
#pragma once

#include <chrono>
#include <string>

namespace longspur::app::cli {

class Progress {
 public:
  // what: "load", "batch". quiet: nothing is shown at all.
  explicit Progress(std::string what, bool quiet = false);
  ~Progress();  // clears the line of a terminal
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // detail: "45.2 tokens/s"; may be called often.
  void update(double done, double total, const std::string& detail);
  void clear();

 private:
  using Clock = std::chrono::steady_clock;

  std::string what_;
  bool quiet_, terminal_, drawn_ = false;
  Clock::time_point last_;
};

}  // namespace longspur::app::cli

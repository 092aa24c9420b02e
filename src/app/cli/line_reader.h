// Lines of stdin as they come, with Ctrl-C seen while waiting.
#pragma once

#include <string>

namespace longspur::app::cli {

class LineReader {
 public:
  enum class Result { kLine, kEnd, kInterrupted };
  // The next line without its line break; a last one without a break counts.
  Result next(std::string& line);

 private:
  std::string buffer_;
  bool ended_ = false;
};

}  // namespace longspur::app::cli

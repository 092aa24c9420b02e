// A program run beside ours, spoken to through its stdin and stdout; its stderr is ours.
#pragma once

#include <string>
#include <vector>

namespace longspur::app::cli {

class ChildProcess {
 public:
  // arguments[0]: the program, looked up in PATH. Throws Error when it cannot be started.
  explicit ChildProcess(const std::vector<std::string>& arguments);
  ~ChildProcess();  // ends it when it still runs
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // Throws Error when the child no longer reads.
  void write_line(const std::string& text);
  void close_stdin();

  // The next line without its end; throws Error when the child ended before one, Interrupted when
  // we are asked to stop.
  std::string read_line();
  // Waits until something can be read; false at the end of its output.
  bool read_more();

  // Waits for its end; its exit code, or 128 + the signal that ended it.
  int wait();

 private:
  std::string name_;
  int pid_ = -1;
  int stdin_ = -1, stdout_ = -1;
  std::string buffer_;
};

}  // namespace longspur::app::cli

// SIGINT and SIGTERM: the first asks the running verb to stop where it can keep what it has, the
// second ends the program at once.
#pragma once

#include <exception>

namespace longspur::app::cli {

// Thrown where there is nothing worth keeping.
class Interrupted : public std::exception {
 public:
  explicit Interrupted(int signal) : signal_(signal) {}
  int exit_code() const { return 128 + signal_; }

 private:
  int signal_;
};

// Installs the handlers; ignores SIGPIPE and SIGXFSZ, so that write() reports them.
void install_signal_handlers();
// The signal that asked to stop, 0: none.
int pending_interrupt();
// 128 + the pending signal.
int interrupt_exit_code();
// Throws Interrupted when one is pending.
void check_interrupt();
// The request was served (an interactive chat goes on).
void clear_interrupt();

}  // namespace longspur::app::cli

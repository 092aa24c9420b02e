#include "app/cli/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <csignal>

namespace longspur::app::cli {

namespace {

volatile std::sig_atomic_t pending = 0;  // written by the handler, so it has to be global

void on_signal(int signal) {
  if (pending != 0) _exit(128 + signal);
  pending = signal;
}

}  // namespace

void install_signal_handlers() {
  struct sigaction action = {};
  action.sa_handler = on_signal;  // no SA_RESTART: a read of stdin returns
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  struct sigaction ignore = {};
  ignore.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &ignore, nullptr);
  sigaction(SIGXFSZ, &ignore, nullptr);
}

int pending_interrupt() { return pending; }
int interrupt_exit_code() { return 128 + pending; }
void check_interrupt() {
  if (pending != 0) throw Interrupted(pending);
}
void clear_interrupt() { pending = 0; }

}  // namespace longspur::app::cli

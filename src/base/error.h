// Errors and checks. Library code throws; only app/ turns an exception into a message and an exit
// code. A message is one line that names the thing, what was found and what was expected.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace longspur {

// Bad input: a file, a request or a flag value. Exit code 1 unless it is a UsageError.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The command line or a configuration is impossible. Exit code 2.
class UsageError : public Error {
 public:
  using Error::Error;
};

// Something this build or machine cannot do (unknown architecture, missing GPU). Exit code 1.
class UnsupportedError : public Error {
 public:
  using Error::Error;
};

// A broken invariant of our own.
class InternalError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

// concat("tensor '", name, "': found ", n) -> std::string.
template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// require(n > 0, "batch: found ", n, ", expected at least 1") throws Error when the condition
// fails.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw Error(concat(parts...));
}
// A string literal as condition is always true and always a mistake.
template <class... Parts>
void require(const char* condition, const Parts&... parts) = delete;

[[noreturn]] void assertion_failed(const char* expression, const char* file, int line);

}  // namespace longspur

// Invariants on cold paths; on in all builds.
#define LONGSPUR_ASSERT(expression) \
  ((expression) ? void(0) : ::longspur::assertion_failed(#expression, __FILE__, __LINE__))

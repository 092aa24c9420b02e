#include "base/error.h"

namespace longspur {

void assertion_failed(const char* expression, const char* file, int line) {
  throw InternalError(concat(file, ":", line, ": assertion failed: ", expression));
}

}  // namespace longspur

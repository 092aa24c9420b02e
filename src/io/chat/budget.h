// What one rendering may use. Templates are untrusted: everything that loops, recurses or grows
// pays here first.
#pragma once

#include <cstdint>

#include "base/error.h"

namespace longspur::io::chat {

class Budget {
 public:
  Budget(int64_t steps, int64_t bytes, int64_t iterations)
      : steps_(steps), bytes_(bytes), iterations_(iterations) {}

  void spend(int64_t steps) {
    if ((steps_ -= steps) < 0) throw Error("the template takes too many steps");
  }
  // Bytes of everything that is ever made, not only of what is alive; copying takes time too.
  void allocate(int64_t bytes) {
    if (bytes > bytes_) throw Error("the template needs too much memory");
    bytes_ -= bytes;
  }
  void iterate() {
    if (--iterations_ < 0) throw Error("the template's loops run too often");
  }

 private:
  int64_t steps_, bytes_, iterations_;
};

}  // namespace longspur::io::chat

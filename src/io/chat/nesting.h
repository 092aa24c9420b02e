// Counts recursion while it lives.
#pragma once

#include "base/error.h"

namespace longspur::io::chat {

class Nested {
 public:
  explicit Nested(int& left) : left_(left) {
    if (left_ <= 0) throw Error("the template nests too deeply");
    --left_;
  }
  ~Nested() { ++left_; }
  Nested(const Nested&) = delete;
  Nested& operator=(const Nested&) = delete;

 private:
  int& left_;
};

}  // namespace longspur::io::chat

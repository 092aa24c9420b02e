// Turns one sequence's sampled tokens into text for the caller: whole characters, nothing of a stop
// string, and what might be the beginning of one held back until it is decided.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/tokenizer/tokenizer.h"

namespace longspur::engine {

// Finds the first of several stop strings in a text that arrives in pieces.
class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // Text that is certain to precede any stop string. After a match stopped() is true and the rest,
  // the stop string included, is dropped.
  std::string push(const std::string& text);
  std::string flush();
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

class TextOutput {
 public:
  TextOutput(const io::Tokenizer& tokenizer, std::vector<std::string> stops)
      : decoder_(tokenizer, {.skip_special = true}),
        vocab_(tokenizer.vocab_size()),
        matcher_(std::move(stops)) {}

  // Ids beyond the tokenizer's are the padding of a model's vocabulary and have no text.
  std::string push(int32_t token) {
    return token < vocab_ ? matcher_.push(decoder_.push(token)) : std::string();
  }
  std::string flush() {
    std::string text = matcher_.push(decoder_.flush());
    return text + matcher_.flush();
  }
  bool stopped() const { return matcher_.stopped(); }

 private:
  io::StreamDecoder decoder_;
  int32_t vocab_;
  StopMatcher matcher_;
};

}  // namespace longspur::engine

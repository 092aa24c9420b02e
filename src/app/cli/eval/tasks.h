// The long-context tasks of `longspur eval`: prompts of an exact number of tokens with something to
// find at a given depth, and the tokens that answer them. Pure but for the tokenizer it is given.
//
//   passkey  a five-digit key in plain filler (Mohtashami and Jaggi, 2023)
//   needle   a sentence that does not belong, in real text (Kamradt, "needle in a haystack", 2023)
//   quote    a passage of the text again, from where the question leaves off: pure copying
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace longspur::app::cli::eval {

enum class Task { kPasskey, kNeedle, kQuote };
std::string_view task_name(Task task);
Task parse_task(std::string_view name);  // throws UsageError

struct Case {
  Task task = Task::kPasskey;
  int64_t length = 0;  // tokens of prompt and answer together
  double depth = 0;    // where it stands in the text: 0 the beginning, 1 the end
  uint64_t seed = 0;   // of the key, the needle
};

struct Sample {
  std::vector<int32_t> tokens;  // prompt, then answer: Case::length of them
  int64_t answer = 0;           // index of the answer's first token
};

using Encode = std::function<std::vector<int32_t>(const std::string&)>;

// `text`: what needles are hidden in and passages taken from; empty: made-up sentences, no two
// alike in order. A text that is too short is repeated. Throws UsageError when the length leaves no
// room for the task.
Sample make_sample(const Case& wanted, const std::string& text, const Encode& encode);

// Sentences about a small town, at least `characters` long, the same for the same seed.
std::string made_up_text(int64_t characters, uint64_t seed);

}  // namespace longspur::app::cli::eval

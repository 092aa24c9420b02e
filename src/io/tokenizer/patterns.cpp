// The pre-tokenizer patterns of GPT-2, Llama-3 and Qwen2 by hand: at each position the alternatives
// are tried in the order in which the expression lists them. Every character is in some piece. An
// invalid byte counts as a character that is neither letter, number nor space.
#include "io/tokenizer/pre_tokenizer.h"
#include "io/tokenizer/unicode.h"

namespace longspur::io {

namespace {

// A cursor over one span; `classes` is the table of all code points.
struct Scanner {
  std::string_view text;  // ends where the span ends
  const uint8_t* classes;

  size_t end() const { return text.size(); }

  uint8_t class_at(size_t at, size_t& after) const {
    after = at;
    return next_class(text, after, classes);
  }

  // Past the run of characters that have a class bit in `any`.
  size_t skip(size_t at, uint8_t any) const {
    size_t after = at;
    while (at < end() && (class_at(at, after) & any) != 0) at = after;
    return at;
  }
  // Past the run of characters without any bit of `none`.
  size_t skip_others(size_t at, uint8_t none) const {
    size_t after = at;
    while (at < end() && (class_at(at, after) & none) == 0) at = after;
    return at;
  }
  size_t skip_newlines(size_t at) const {
    while (at < end() && (text[at] == '\r' || text[at] == '\n')) ++at;
    return at;
  }

  // \s+(?!\S)|\s+ at a space character: leaves the last one to the piece that follows.
  size_t spaces(size_t at) const {
    size_t last = at;
    size_t after = at;
    size_t next = at;
    while (next < end() && (class_at(next, after) & kSpace) != 0) {
      last = next;
      next = after;
    }
    return next == end() || last == at ? next : last;
  }
};

constexpr uint8_t kNotOther = kSpace | kLetter | kNumber;

// 's|'t|'re|'ve|'m|'ll|'d at an apostrophe: where it ends, or `at`.
size_t contraction(std::string_view text, size_t at, bool any_case) {
  const auto letter = [&](size_t i) {
    const char c = i < text.size() ? text[i] : '\0';
    return any_case && c >= 'A' && c <= 'Z' ? char(c + ('a' - 'A')) : c;
  };
  switch (letter(at + 1)) {
    case 's':
    case 't':
    case 'm':
    case 'd':
      return at + 2;
    case 'r':
    case 'v':
      return letter(at + 2) == 'e' ? at + 3 : at;
    case 'l':
      return letter(at + 2) == 'l' ? at + 3 : at;
    case '\xc5':  // U+017F, the long s, is an s in another case
      return any_case && letter(at + 2) == '\xbf' ? at + 3 : at;
    default:
      return at;
  }
}

size_t next_gpt2(const Scanner& scan, size_t at) {
  if (scan.text[at] == '\'') {
    const size_t end = contraction(scan.text, at, false);
    if (end != at) return end;
  }
  size_t body = at;
  if (scan.text[at] == ' ') ++body;
  if (body < scan.end()) {
    size_t after = body;
    const uint8_t c = scan.class_at(body, after);
    if (c & kLetter) return scan.skip(after, kLetter);
    if (c & kNumber) return scan.skip(after, kNumber);
    if (!(c & kSpace)) return scan.skip_others(after, kNotOther);
  }
  return scan.spaces(at);
}

// \s*[\r\n]+|\s+(?!\S)|\s+ at a space character.
size_t newlines_or_spaces(const Scanner& scan, size_t at) {
  size_t after_newline = at;
  size_t after = at;
  for (size_t next = at; next < scan.end(); next = after) {
    if ((scan.class_at(next, after) & kSpace) == 0) break;
    if (scan.text[next] == '\n' || scan.text[next] == '\r') after_newline = after;
  }
  return after_newline != at ? after_newline : scan.spaces(at);
}

size_t next_llama3(const Scanner& scan, size_t at, int max_digits) {
  const char first = scan.text[at];
  if (first == '\'') {
    const size_t end = contraction(scan.text, at, true);
    if (end != at) return end;
  }
  size_t after = at;
  const uint8_t c = scan.class_at(at, after);
  if (c & kLetter) return scan.skip(after, kLetter);
  if (c & kNumber) {
    for (int digits = 1; digits < max_digits && after < scan.end(); ++digits) {
      size_t next = after;
      if ((scan.class_at(after, next) & kNumber) == 0) break;
      after = next;
    }
    return after;
  }
  size_t second = after;
  const uint8_t next = after < scan.end() ? scan.class_at(after, second) : uint8_t(kSpace);
  if ((next & kLetter) && first != '\r' && first != '\n') return scan.skip(second, kLetter);
  if (!(c & kSpace)) return scan.skip_newlines(scan.skip_others(after, kNotOther));
  if (first == ' ' && (next & kNotOther) == 0)
    return scan.skip_newlines(scan.skip_others(second, kNotOther));
  return newlines_or_spaces(scan, at);
}

class PatternStep final : public CuttingStep {
 public:
  explicit PatternStep(KnownPattern pattern) : pattern_(pattern) {}

 protected:
  void cut(std::string_view text, Span span, std::vector<Span>& out) const override {
    const Scanner scan{text.substr(0, span.end), classes_};
    switch (pattern_) {
      case KnownPattern::kGpt2:
        return run(span, out, [&](size_t at) { return next_gpt2(scan, at); });
      case KnownPattern::kLlama3:
        return run(span, out, [&](size_t at) { return next_llama3(scan, at, 3); });
      case KnownPattern::kQwen2:
        return run(span, out, [&](size_t at) { return next_llama3(scan, at, 1); });
    }
  }

 private:
  template <class Next>
  static void run(Span span, std::vector<Span>& out, Next next) {
    for (uint32_t at = span.begin; at < span.end;) {
      const auto end = uint32_t(next(at));
      out.push_back({at, end});
      at = end;
    }
  }

  KnownPattern pattern_;
  const uint8_t* classes_ = char_classes();
};

}  // namespace

std::unique_ptr<PreTokenizerStep> make_pattern_step(KnownPattern pattern) {
  return std::make_unique<PatternStep>(pattern);
}

}  // namespace longspur::io

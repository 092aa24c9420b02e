// The Split pre-tokenizer with an expression from a file. Published expressions are recognised and
// run by hand (patterns.cpp); any other is compiled with PCRE2, with limits on the work of a match.
// `tokenizers` uses Oniguruma in Ruby's dialect; what that dialect spells otherwise is refused.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>

#include "base/error.h"
#include "io/files/printable.h"
#include "io/tokenizer/pre_tokenizer.h"
#include "io/tokenizer/unicode.h"

namespace longspur::io {

namespace {

constexpr size_t kMaxExpressionBytes = 8192;
constexpr uint32_t kMatchLimit = 20'000'000;
constexpr uint32_t kHeapLimitKiB = 65536;
constexpr size_t kJitStackBytes = size_t(1) << 24;

struct KnownExpression {
  std::string_view expression;
  KnownPattern pattern;
};

constexpr KnownExpression kKnownExpressions[] = {
    {R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
     KnownPattern::kGpt2},
    {R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
     KnownPattern::kGpt2},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3})"
     R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     KnownPattern::kLlama3},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})"
     R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     KnownPattern::kQwen2},
};

// Translates the classes on which the two engines differ (PCRE2 counts U+180E as \s, and no marks
// as \w), and refuses what Ruby's dialect reads in another way.
class Translation {
 public:
  Translation(std::string_view expression, const std::string& where)
      : in_(expression), where_(where) {}

  std::string run() {
    while (at_ < in_.size()) step();
    return std::move(out_);
  }

 private:
  void step() {
    const char c = in_[at_];
    if (c == '\\' && at_ + 1 < in_.size()) return escape();
    if (c == '[') {
      if (class_depth_ > 0) refuse("[ inside [ ]");
      ++class_depth_;
      // a ] in first place is a character of the class
      const size_t first = at_ + (in_.substr(at_ + 1).starts_with('^') ? 2 : 1);
      return copy(first < in_.size() && in_[first] == ']' ? first + 1 - at_ : first - at_);
    }
    if (c == ']' && class_depth_ > 0) --class_depth_;
    if (class_depth_ > 0 && in_.substr(at_).starts_with("&&")) refuse("&&");
    if (class_depth_ == 0) refuse_outside();
    copy(1);
  }

  void refuse_outside() const {
    const std::string_view rest = in_.substr(at_);
    if (rest.starts_with("{,")) refuse("{,");
    if (!rest.starts_with("(?")) return;
    // (?m) is "dot matches newline" there and "^ matches after newline" here
    const size_t end = std::min(rest.find_first_of(":)<=!>#P'", 2), rest.size());
    if (rest.substr(2, end - 2).find('m') != std::string_view::npos) refuse("(?m)");
  }

  void escape() {
    const char c = in_[at_ + 1];
    const bool inside = class_depth_ > 0;
    switch (c) {
      case 's':
        return replace(inside ? kSpaces : concat("[", kSpaces, "]"));
      case 'S':
        return inside ? copy(2) : replace(concat("[^", kSpaces, "]"));
      case 'w':
        return replace(inside ? kWords : concat("[", kWords, "]"));
      case 'W':
        return inside ? refuse("\\W inside [ ]") : replace(concat("[^", kWords, "]"));
      case 'b':
      case 'B':
        return inside ? copy(2) : refuse(concat("\\", c));
      case 'h':
      case 'H':
      case 'R':
      case 'X':
      case 'K':
      case 'C':
      case 'Q':
      case 'g':
      case 'y':
      case 'Y':
        return refuse(concat("\\", c));
      default:
        return copy(2);
    }
  }

  void copy(size_t bytes) {
    out_ += in_.substr(at_, bytes);
    at_ += bytes;
  }
  void replace(const std::string& by) {
    out_ += by;
    at_ += 2;
  }
  [[noreturn]] void refuse(const std::string& what) const {
    throw UnsupportedError(concat(where_, ": found ", what, " in the expression ", shown(in_),
                                  ", expected a construct that is supported"));
  }

  inline static const std::string kSpaces = R"(\t-\r\x{85}\p{Z})";
  // Oniguruma takes the Latin-1 superscripts and fractions, and letters in circles, for words
  inline static const std::string kWords =
      R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{b2}\x{b3}\x{b9}\x{bc}-\x{be}\x{24b6}-\x{24e9})"
      R"(\x{1f130}-\x{1f149}\x{1f150}-\x{1f169}\x{1f170}-\x{1f189})";

  std::string_view in_;
  const std::string& where_;
  std::string out_;
  size_t at_ = 0;
  int class_depth_ = 0;
};

template <auto kFree>
struct Freed {
  template <class T>
  void operator()(T* pointer) const {
    kFree(pointer);
  }
};
using Code = std::unique_ptr<pcre2_code, Freed<pcre2_code_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Freed<pcre2_match_data_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Freed<pcre2_match_context_free>>;
using JitStack = std::unique_ptr<pcre2_jit_stack, Freed<pcre2_jit_stack_free>>;

// What one call needs to match; the compiled expression is shared.
struct Matcher {
  MatchData data;
  MatchContext context{pcre2_match_context_create(nullptr)};
  JitStack stack{pcre2_jit_stack_create(size_t(32) << 10, kJitStackBytes, nullptr)};

  explicit Matcher(const pcre2_code* code)
      : data(pcre2_match_data_create_from_pattern(code, nullptr)) {
    if (!data || !context || !stack) throw std::bad_alloc();
    pcre2_set_match_limit(context.get(), kMatchLimit);
    pcre2_set_heap_limit(context.get(), kHeapLimitKiB);
    pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  }
};

class RegexStep final : public PreTokenizerStep {
 public:
  RegexStep(const std::string& expression,
            SplitBehavior behavior,
            bool invert,
            const std::string& where)
      : where_(concat(where, ": expression ", shown(expression))),
        behavior_(behavior),
        invert_(invert) {
    const std::string translated = Translation(expression, where).run();
    int error = 0;
    PCRE2_SIZE offset = 0;
    // in Ruby's dialect ^ and $ always see lines
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                              &error, &offset, nullptr));
    if (!code_) {
      PCRE2_UCHAR message[256] = {};
      pcre2_get_error_message(error, message, sizeof(message));
      throw UnsupportedError(
          concat(where_, ": PCRE2 says '", reinterpret_cast<const char*>(message), "'"));
    }
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // without it, the interpreter is used
  }

  void apply(Pieces& pieces) const override {
    const Matcher matcher(code_.get());
    std::vector<Span> out, matches;
    for (const Span span : pieces.spans) {
      matches.clear();
      find_matches(matcher, pieces.text.substr(0, span.end), span.begin, matches);
      split_at_matches(span, matches, behavior_, invert_, out);
    }
    pieces.spans.swap(out);
  }

 private:
  // Invalid bytes are in no match, and matches do not reach across them.
  void find_matches(const Matcher& matcher,
                    std::string_view text,
                    uint32_t begin,
                    std::vector<Span>& matches) const {
    while (begin < text.size()) {
      const size_t valid = find_invalid_utf8(text.substr(begin));
      find_in_valid(matcher, text.substr(begin, valid), begin, matches);
      begin += uint32_t(valid) + 1;
    }
  }

  void find_in_valid(const Matcher& matcher,
                     std::string_view text,
                     uint32_t base,
                     std::vector<Span>& matches) const {
    const PCRE2_SIZE* found = pcre2_get_ovector_pointer(matcher.data.get());
    const auto step = [&](size_t at) { return at + next_char(text.substr(at)).bytes; };
    size_t last = std::string_view::npos;  // where the match before ended
    for (size_t at = 0; at < text.size();) {
      const int result =
          pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                      PCRE2_NO_UTF_CHECK, matcher.data.get(), matcher.context.get());
      if (result == PCRE2_ERROR_NOMATCH) return;
      require(result > 0, where_, ": found a text that takes too much work (PCRE2 error ", result,
              ")");
      const size_t begin = found[0];
      const size_t end = found[1];
      if (begin == end && begin == text.size()) return;
      if (begin != end || begin != last)
        matches.push_back({base + uint32_t(begin), base + uint32_t(end)});
      last = end;
      at = begin == end ? step(end) : end;
    }
  }

  std::string where_;
  SplitBehavior behavior_;
  bool invert_;
  Code code_;
};

// Every character is in a match of a known pattern, so these leave the same pieces.
bool keeps_matches_apart(SplitBehavior behavior, bool invert) {
  return behavior == SplitBehavior::kIsolated || (behavior == SplitBehavior::kRemoved && invert);
}

}  // namespace

std::unique_ptr<PreTokenizerStep> make_regex_step(const std::string& expression,
                                                  SplitBehavior behavior,
                                                  bool invert,
                                                  const std::string& where) {
  require(expression.size() <= kMaxExpressionBytes, where, ": found an expression of ",
          expression.size(), " bytes, expected at most ", kMaxExpressionBytes);
  if (keeps_matches_apart(behavior, invert)) {
    for (const KnownExpression& known : kKnownExpressions)
      if (known.expression == expression) return make_pattern_step(known.pattern);
  }
  return std::make_unique<RegexStep>(expression, behavior, invert, where);
}

}  // namespace longspur::io

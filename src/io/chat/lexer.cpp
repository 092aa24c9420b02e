// A hand-written scanner with the same choices as jinja2's regular expressions.
#include "io/chat/lexer.h"

#include <array>
#include <charconv>
#include <optional>

#include "io/chat/unicode.h"

namespace longspur::io::chat {
namespace {

constexpr auto kNone = std::string_view::npos;
constexpr size_t kMaxDigits = 38;  // of an integer of 128 bits

constexpr std::array<std::string_view, 6> kLongOperators = {"//", "**", "==", "!=", ">=", "<="};
constexpr std::string_view kShortOperators = "+-/*%~[](){}><=.:|,;";

bool is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}
bool is_ascii_digit(char c) { return c >= '0' && c <= '9'; }

// One line end style, and without the last line end.
std::string normalize_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

int digit_value(char c) {
  if (is_ascii_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return 99;
}

// The escapes of a Python string literal.
class Unescaper {
 public:
  Unescaper(std::string_view body, Position position) : body_(body), position_(position) {}

  std::string run() {
    std::string out;
    while (at_ < body_.size()) {
      if (body_[at_] != '\\' || at_ + 1 >= body_.size()) {
        out += body_[at_++];
      } else {
        ++at_;
        escape(out);
      }
    }
    return out;
  }

 private:
  void escape(std::string& out) {
    static constexpr std::string_view kNames = "\\'\"abfnrtv";
    static constexpr std::string_view kCodes = "\\'\"\a\b\f\n\r\t\v";
    const char c = body_[at_];
    if (const size_t known = kNames.find(c); known != kNone) {
      out += kCodes[known];
      ++at_;
    } else if (c == '\n') {
      ++at_;
    } else if (c >= '0' && c <= '7') {
      octal(out);
    } else if (c == 'x') {
      hexadecimal(out, 2);
    } else if (c == 'u') {
      hexadecimal(out, 4);
    } else if (c == 'U') {
      hexadecimal(out, 8);
    } else if (c == 'N') {
      fail_at(position_, "character names (\\N) are not supported");
    } else {
      out += '\\';  // an unknown escape stands for itself
      if (static_cast<unsigned char>(c) >= 0x80) non_ascii(out);
    }
  }

  void octal(std::string& out) {
    char32_t code = 0;
    for (int i = 0; i < 3 && at_ < body_.size() && body_[at_] >= '0' && body_[at_] <= '7'; ++i) {
      code = code * 8 + static_cast<char32_t>(body_[at_++] - '0');
    }
    append_utf8(out, code);
  }

  void hexadecimal(std::string& out, size_t digits) {
    const std::string_view text = body_.substr(at_ + 1, digits);
    char32_t code = 0;
    for (const char c : text) {
      const int digit = digit_value(c);
      if (digit > 15) fail_at(position_, concat("truncated \\", body_[at_], " escape"));
      code = code * 16 + static_cast<char32_t>(digit);
    }
    if (text.size() < digits) fail_at(position_, concat("truncated \\", body_[at_], " escape"));
    if (code > 0x10FFFF) fail_at(position_, "illegal Unicode character in an escape");
    append_utf8(out, code);
    at_ += 1 + digits;
  }

  // jinja2 escapes what is not ASCII before it unescapes, which shows after a backslash.
  void non_ascii(std::string& out) {
    static constexpr char kHex[] = "0123456789abcdef";
    size_t length = 0;
    const char32_t code = decode_at(body_, at_, &length);
    at_ += length;
    const int digits = code < 0x100 ? 2 : code < 0x10000 ? 4 : 8;
    out += code < 0x100 ? 'x' : code < 0x10000 ? 'u' : 'U';
    for (int i = digits - 1; i >= 0; --i) out += kHex[(code >> (4 * i)) & 15];
  }

  std::string_view body_;
  Position position_;
  size_t at_ = 0;
};

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) root();
    push(TokenKind::end, "");
    return std::move(tokens_);
  }

 private:
  char peek(size_t ahead = 0) const {
    return at_ + ahead < source_.size() ? source_[at_ + ahead] : '\0';
  }
  bool starts(std::string_view text, size_t at) const {
    return source_.compare(at, text.size(), text) == 0;
  }
  bool starts(std::string_view text) const { return starts(text, at_); }

  void advance_to(size_t end) {
    for (; at_ < end; ++at_) {
      if (source_[at_] == '\n') {
        ++position_.line;
        position_.column = 1;
      } else if ((static_cast<unsigned char>(source_[at_]) & 0xC0) != 0x80) {
        ++position_.column;
      }
    }
  }
  void skip_blanks() { advance_to(skip_spaces(source_, at_)); }

  Token& push(TokenKind kind, std::string text) {
    tokens_.push_back({.kind = kind, .position = position_, .text = std::move(text)});
    return tokens_.back();
  }

  // Start of the next tag at or after `from`, npos when there is none.
  size_t next_tag(size_t from) const {
    for (size_t at = source_.find('{', from); at != kNone; at = source_.find('{', at + 1)) {
      const char next = at + 1 < source_.size() ? source_[at + 1] : '\0';
      if (next == '{' || next == '%' || next == '#') return at;
    }
    return kNone;
  }

  // End of the text before a tag once the tag's sign and the settings took blanks away.
  size_t data_end(size_t begin, size_t tag, char sign, bool variable) const {
    if (sign == '-') return trim_end(source_, begin, tag);
    if (sign == '+' || variable) return tag;
    size_t line = tag;
    while (line > begin && source_[line - 1] != '\n') --line;
    const bool at_line_start = line > begin || line_starting_;
    if (at_line_start && trim_end(source_, line, tag) == line) return line;
    return tag;
  }

  void data(size_t end, size_t tag) {
    if (end > at_) push(TokenKind::data, source_.substr(at_, end - at_));
    advance_to(tag);
  }

  void root() {
    const size_t tag = next_tag(at_);
    if (tag == kNone) {
      data(source_.size(), source_.size());
      return;
    }
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    const bool variable = source_[tag + 1] == '{';
    data(data_end(at_, tag, sign, variable), tag);
    const size_t after_sign = tag + 2 + (sign == '-' || sign == '+' ? 1 : 0);
    if (source_[tag + 1] == '#') {
      comment(after_sign);
    } else if (variable) {
      push(TokenKind::variable_begin, "{{");
      advance_to(after_sign);
      inside(true);
    } else if (const size_t body = raw_body(after_sign); body != kNone) {
      raw(body);
    } else {
      push(TokenKind::block_begin, "{%");
      advance_to(after_sign);
      inside(false);
    }
    line_starting_ = at_ > 0 && source_[at_ - 1] == '\n';
  }

  // The end of a tag that closes at `at` with this bracket: blanks after "-", one newline else.
  size_t after_close(size_t at, std::string_view close, char sign, bool trims) const {
    at += close.size();
    if (sign == '-') return skip_spaces(source_, at);
    if (sign != '+' && trims && at < source_.size() && source_[at] == '\n') return at + 1;
    return at;
  }

  void comment(size_t body) {
    const size_t close = source_.find("#}", body);
    if (close == kNone) fail_at(position_, "missing end of comment tag");
    const char before = close > body ? source_[close - 1] : '\0';
    advance_to(after_close(close, "#}", before, true));
  }

  // Where the contents of {% raw %} start, npos when the tag at hand is another one.
  size_t raw_body(size_t at) const {
    at = skip_spaces(source_, at);
    if (!starts("raw", at)) return kNone;
    at = skip_spaces(source_, at + 3);
    if (starts("%}", at)) return at + 2;
    if (starts("-%}", at)) return skip_spaces(source_, at + 3);
    return kNone;
  }

  void raw(size_t body) {
    const Position start = position_;
    advance_to(body);
    line_starting_ = source_[body - 1] == '\n';
    for (size_t tag = source_.find("{%", body); tag != kNone; tag = source_.find("{%", tag + 1)) {
      const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
      size_t at = skip_spaces(source_, tag + 2 + (sign == '-' || sign == '+' ? 1 : 0));
      if (!starts("endraw", at)) continue;
      at = skip_spaces(source_, at + 6);
      const char close = at < source_.size() ? source_[at] : '\0';
      if (close == '-' || close == '+') ++at;
      if (!starts("%}", at)) continue;
      data(data_end(body, tag, sign, false), tag);
      advance_to(after_close(at, "%}", close, true));
      return;
    }
    fail_at(start, "missing end of raw directive");
  }

  // The tokens of one tag, up to and including its end.
  void inside(bool variable) {
    const Position start = position_;
    std::string open;  // closing brackets that are due
    while (at_ < source_.size()) {
      if (open.empty() && closes(variable)) return;
      token(open);
    }
    fail_at(start, variable ? "unexpected end of template, expected '}}'"
                            : "unexpected end of template, expected '%}'");
  }

  bool closes(bool variable) {
    const std::string_view close = variable ? "}}" : "%}";
    const char sign = peek();
    const bool signed_close = sign == '-' || (sign == '+' && !variable);
    const size_t at = at_ + (signed_close ? 1 : 0);
    if (!starts(close, at)) return false;
    push(variable ? TokenKind::variable_end : TokenKind::block_end, std::string(close));
    advance_to(after_close(at, close, signed_close ? sign : '\0', !variable));
    return true;
  }

  void token(std::string& open) {
    const size_t blank = skip_spaces(source_, at_);
    if (blank > at_) {
      advance_to(blank);
    } else if (is_ascii_digit(peek())) {
      number();
    } else if (is_word(peek())) {
      size_t end = at_;
      while (end < source_.size() && is_word(source_[end])) ++end;
      push(TokenKind::name, source_.substr(at_, end - at_));
      advance_to(end);
    } else if (peek() == '\'' || peek() == '"') {
      string();
    } else {
      symbol(open);
    }
  }

  void string() {
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != peek()) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) fail_at(position_, "string without its closing quote");
    const std::string_view body = std::string_view(source_).substr(at_ + 1, end - at_ - 1);
    push(TokenKind::string, Unescaper(body, position_).run());
    advance_to(end + 1);
  }

  void symbol(std::string& open) {
    for (const std::string_view op : kLongOperators) {
      if (!starts(op)) continue;
      push(TokenKind::op, std::string(op));
      advance_to(at_ + op.size());
      return;
    }
    const char c = peek();
    if (kShortOperators.find(c) == kNone)
      fail_at(position_, concat("unexpected character '", c, "'"));
    if (c == '(') open += ')';
    if (c == '[') open += ']';
    if (c == '{') open += '}';
    if (c == ')' || c == ']' || c == '}') {
      if (open.empty()) fail_at(position_, concat("unexpected '", c, "'"));
      if (open.back() != c) {
        fail_at(position_, concat("unexpected '", c, "', expected '", open.back(), "'"));
      }
      open.pop_back();
    }
    push(TokenKind::op, std::string(1, c));
    advance_to(at_ + 1);
  }

  // Digits of a base with single underscores between them; kNone when there is none.
  size_t digits_end(size_t at, int base) const {
    if (at >= source_.size() || digit_value(source_[at]) >= base) return kNone;
    while (at < source_.size()) {
      if (digit_value(source_[at]) < base) {
        ++at;
      } else if (source_[at] == '_' && at + 1 < source_.size() &&
                 digit_value(source_[at + 1]) < base) {
        at += 2;
      } else {
        break;
      }
    }
    return at;
  }

  std::optional<size_t> real_end() const {
    if (at_ > 0 && source_[at_ - 1] == '.') return std::nullopt;  // x.0.1: two subscripts
    size_t end = digits_end(at_, 10);
    bool real = false;
    if (end < source_.size() && source_[end] == '.') {
      if (const size_t fraction = digits_end(end + 1, 10); fraction != kNone) {
        end = fraction;
        real = true;
      }
    }
    if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      size_t digits = end + 1;
      if (digits < source_.size() && (source_[digits] == '+' || source_[digits] == '-')) ++digits;
      if (const size_t exponent = digits_end(digits, 10); exponent != kNone) {
        end = exponent;
        real = true;
      }
    }
    return real ? std::optional(end) : std::nullopt;
  }

  std::string without_underscores(size_t begin, size_t end) const {
    std::string out;
    for (size_t i = begin; i < end; ++i) {
      if (source_[i] != '_') out += source_[i];
    }
    return out;
  }

  void number() {
    if (const auto end = real_end()) {
      const std::string digits = without_underscores(at_, *end);
      Token& token = push(TokenKind::real, digits);
      const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), token.real);
      if (parsed.ec == std::errc::result_out_of_range) {
        fail_at(position_, concat("number ", digits, " is out of range"));
      }
      advance_to(*end);
      return;
    }
    integer();
  }

  void integer() {
    int base = 10;
    size_t begin = at_;
    size_t end = kNone;
    if (peek() == '0') {
      const char kind = peek(1);
      base = kind == 'b' || kind == 'B' ? 2 : kind == 'o' || kind == 'O' ? 8 : 16;
      begin = at_ + (peek(2) == '_' ? 3 : 2);
      if (std::string_view("bBoOxX").find(kind) != kNone) end = digits_end(begin, base);
      if (end == kNone) {  // zeros only
        base = 10;
        begin = at_;
        end = digits_end(at_, 1);
      }
    } else {
      end = digits_end(at_, 10);
    }
    const std::string digits = without_underscores(begin, end);
    if (digits.size() > kMaxDigits) fail_at(position_, concat("number ", digits, " is too large"));
    Token& token = push(TokenKind::integer, digits);
    for (const char c : digits) {
      if (__builtin_mul_overflow(token.integer, Integer(base), &token.integer) ||
          __builtin_add_overflow(token.integer, Integer(digit_value(c)), &token.integer)) {
        fail_at(position_, concat("number ", digits, " is too large"));
      }
    }
    advance_to(end);
  }

  std::string source_;
  size_t at_ = 0;
  Position position_;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::string to_string(Position position) {
  return concat("line ", position.line, ", column ", position.column);
}

void fail_at(Position position, const std::string& message) {
  throw Error(concat("chat template: ", to_string(position), ": ", message));
}

std::vector<Token> tokenize(std::string_view source) {
  return Lexer(normalize_newlines(source)).run();
}

}  // namespace longspur::io::chat

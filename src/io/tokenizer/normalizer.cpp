#include "io/tokenizer/normalizer.h"

#include <utf8proc.h>

#include <algorithm>

#include "base/error.h"
#include "io/tokenizer/unicode.h"

namespace longspur::io {

namespace {

class PrependStep final : public NormalizerStep {
 public:
  explicit PrependStep(std::string prefix) : prefix_(std::move(prefix)) {}
  void apply(std::string& text, bool continued) const override {
    if (!text.empty() && !continued) text.insert(0, prefix_);
  }

 private:
  std::string prefix_;
};

class ReplaceStep final : public NormalizerStep {
 public:
  ReplaceStep(std::string from, std::string to) : from_(std::move(from)), to_(std::move(to)) {}
  void apply(std::string& text, bool) const override {
    size_t at = from_.empty() ? std::string::npos : text.find(from_);
    if (at == std::string::npos) return;
    std::string out;
    out.reserve(text.size() + text.size() / 4);
    size_t done = 0;
    for (; at != std::string::npos; at = text.find(from_, done)) {
      out.append(text, done, at - done);
      out += to_;
      done = at + from_.size();
    }
    out.append(text, done);
    text = std::move(out);
  }

 private:
  std::string from_, to_;
};

// Capitals that Unicode has had since 16 and 17, which utf8proc need not know yet.
uint32_t lowercase(uint32_t c) {
  if (c >= 0x10d50 && c <= 0x10d65) return c + 0x20;  // Garay
  if (c >= 0x16ea0 && c <= 0x16eb8) return c + 0x1b;  // Beria Erfe
  switch (c) {
    case 0xa7cb:
      return 0x264;
    case 0xa7dc:
      return 0x19b;
    case 0x1c89:
    case 0xa7cc:
    case 0xa7ce:
    case 0xa7d2:
    case 0xa7d4:
    case 0xa7da:
      return c + 1;
    default:
      return uint32_t(utf8proc_tolower(utf8proc_int32_t(c)));
  }
}

// Character by character; U+0130 becomes two.
class LowercaseStep final : public NormalizerStep {
 public:
  void apply(std::string& text, bool) const override {
    std::string out;
    out.reserve(text.size());
    for (size_t at = 0; at < text.size();) {
      const Utf8Char c = next_char(std::string_view(text).substr(at));
      if (c.code_point == 0x130) {
        out += "i\xcc\x87";
      } else if (c.code_point == kInvalid) {
        out += text[at];
      } else {
        append_utf8(out, lowercase(c.code_point));
      }
      at += c.bytes;
    }
    text = std::move(out);
  }
};

// Characters that take no part are boundaries; between them, decomposes each character, sorts runs
// of combining marks by class, and composes again. utf8proc does each of these, but sorts marks in
// quadratic time.
class UnicodeStep final : public NormalizerStep {
 public:
  explicit UnicodeStep(UnicodeForm form) : form_(form) {}

  void apply(std::string& text, bool) const override {
    if (unchanged(text)) return;
    std::string out;
    out.reserve(text.size());
    std::vector<utf8proc_int32_t> points;
    for (size_t at = 0; at < text.size();) {
      const Utf8Char c = next_char(std::string_view(text).substr(at));
      if (c.code_point == kInvalid || !(classes_[c.code_point] & kNormalizes)) {
        flush(points, out);
        out.append(text, at, c.bytes);
      } else {
        decompose(c.code_point, points);
      }
      at += c.bytes;
    }
    flush(points, out);
    text = std::move(out);
  }

 private:
  bool composes() const { return form_ == UnicodeForm::kNfc || form_ == UnicodeForm::kNfkc; }
  bool compatible() const { return form_ == UnicodeForm::kNfkc || form_ == UnicodeForm::kNfkd; }

  // Nothing below U+0300 changes under NFC, nothing in ASCII under the others.
  bool unchanged(const std::string& text) const {
    const int first = form_ == UnicodeForm::kNfc ? 0xcc : 0x80;
    return std::none_of(text.begin(), text.end(), [&](char c) { return uint8_t(c) >= first; });
  }

  void decompose(uint32_t code_point, std::vector<utf8proc_int32_t>& points) const {
    const auto options =
        utf8proc_option_t(UTF8PROC_DECOMPOSE | (compatible() ? UTF8PROC_COMPAT : 0));
    utf8proc_int32_t buffer[kLongestDecomposition];
    int boundary = 0;
    const auto n = utf8proc_decompose_char(utf8proc_int32_t(code_point), buffer,
                                           kLongestDecomposition, options, &boundary);
    LONGSPUR_ASSERT(n >= 0 && n <= kLongestDecomposition);
    points.insert(points.end(), buffer, buffer + n);
  }

  void flush(std::vector<utf8proc_int32_t>& points, std::string& out) const {
    sort_marks(points);
    auto n = utf8proc_ssize_t(points.size());
    if (composes() && n > 0)
      n = utf8proc_normalize_utf32(points.data(), n,
                                   utf8proc_option_t(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    LONGSPUR_ASSERT(n >= 0 && n <= utf8proc_ssize_t(points.size()));
    for (utf8proc_ssize_t i = 0; i < n; ++i) append_utf8(out, uint32_t(points[size_t(i)]));
    points.clear();
  }

  static void sort_marks(std::vector<utf8proc_int32_t>& points) {
    const auto order = [](utf8proc_int32_t c) {
      return c < 0x300 ? 0 : int(utf8proc_get_property(c)->combining_class);
    };
    for (size_t i = 0; i < points.size();) {
      size_t end = i;
      while (end < points.size() && order(points[end]) != 0) ++end;
      if (end - i > 1)
        std::stable_sort(points.begin() + ptrdiff_t(i), points.begin() + ptrdiff_t(end),
                         [&](auto a, auto b) { return order(a) < order(b); });
      i = end + 1;
    }
  }

  static constexpr int kLongestDecomposition = 32;  // the longest of Unicode is 18
  UnicodeForm form_;
  const uint8_t* classes_ = char_classes();
};

}  // namespace

std::unique_ptr<NormalizerStep> make_unicode_step(UnicodeForm form) {
  return std::make_unique<UnicodeStep>(form);
}

std::unique_ptr<NormalizerStep> make_lowercase_step() { return std::make_unique<LowercaseStep>(); }

std::unique_ptr<NormalizerStep> make_prepend_step(const std::string& prefix) {
  return std::make_unique<PrependStep>(prefix);
}

std::unique_ptr<NormalizerStep> make_replace_step(const std::string& from, const std::string& to) {
  return std::make_unique<ReplaceStep>(from, to);
}

}  // namespace longspur::io

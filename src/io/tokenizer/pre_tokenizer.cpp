#include "io/tokenizer/pre_tokenizer.h"

#include <algorithm>

#include "io/tokenizer/unicode.h"

namespace longspur::io {

void CuttingStep::apply(Pieces& pieces) const {
  std::vector<Span> out;
  out.reserve(std::max(pieces.spans.size(), pieces.text.size() / 4));
  for (const Span span : pieces.spans) cut(pieces.text, span, out);
  pieces.spans.swap(out);
}

namespace {

class LiteralStep final : public CuttingStep {
 public:
  LiteralStep(std::string literal, SplitBehavior behavior, bool invert)
      : literal_(std::move(literal)), behavior_(behavior), invert_(invert) {}

 protected:
  void cut(std::string_view text, Span span, std::vector<Span>& out) const override {
    std::vector<Span> matches;
    const std::string_view inside = text.substr(0, span.end);
    size_t at = literal_.empty() ? std::string_view::npos : inside.find(literal_, span.begin);
    while (at != std::string_view::npos) {
      matches.push_back({uint32_t(at), uint32_t(at + literal_.size())});
      at = inside.find(literal_, at + literal_.size());
    }
    split_at_matches(span, matches, behavior_, invert_, out);
  }

 private:
  std::string literal_;
  SplitBehavior behavior_;
  bool invert_;
};

class DigitsStep final : public CuttingStep {
 public:
  explicit DigitsStep(bool individual) : individual_(individual) {}

 protected:
  void cut(std::string_view text, Span span, std::vector<Span>& out) const override {
    const std::string_view inside = text.substr(0, span.end);
    size_t begin = span.begin;
    bool in_digits = false;
    for (size_t at = begin; at < inside.size();) {
      size_t after = at;
      const bool digit = (next_class(inside, after, classes_) & kNumeric) != 0;
      if (at != begin && (digit != in_digits || (digit && individual_))) {
        out.push_back({uint32_t(begin), uint32_t(at)});
        begin = at;
      }
      in_digits = digit;
      at = after;
    }
    if (begin < span.end) out.push_back({uint32_t(begin), span.end});
  }

 private:
  bool individual_;
  const uint8_t* classes_ = char_classes();
};

// Replaces the text by the pieces as `write(text, piece, index)` puts them there.
template <class Write>
void rewrite(Pieces& pieces, Write write) {
  std::string text;
  text.reserve(pieces.text.size() + 3 * pieces.spans.size());
  for (size_t i = 0; i < pieces.spans.size(); ++i) {
    const std::string_view piece = pieces[i];
    const auto begin = uint32_t(text.size());
    write(text, piece, i);
    pieces.spans[i] = {begin, uint32_t(text.size())};
  }
  pieces.owned = std::move(text);
  pieces.text = pieces.owned;
}

class PrefixSpaceStep final : public PreTokenizerStep {
 public:
  void apply(Pieces& pieces) const override {
    rewrite(pieces, [](std::string& out, std::string_view piece, size_t) {
      if (!piece.starts_with(' ')) out += ' ';
      out += piece;
    });
  }
};

class MetaspaceStep final : public PreTokenizerStep {
 public:
  MetaspaceStep(std::string replacement, Prepend prepend, bool split)
      : replacement_(std::move(replacement)), prepend_(prepend), split_(split) {}

  void apply(Pieces& pieces) const override {
    rewrite(pieces, [&](std::string& out, std::string_view piece, size_t i) {
      const bool wanted = prepend_ == Prepend::kAlways ||
                          (prepend_ == Prepend::kFirst && i == 0 && pieces.at_start);
      const bool present = piece.starts_with(' ') || piece.starts_with(replacement_);
      if (wanted && !present) out += replacement_;
      for (const char c : piece) {
        if (c == ' ') {
          out += replacement_;
        } else {
          out += c;
        }
      }
    });
    if (split_) LiteralStep(replacement_, SplitBehavior::kMergedWithNext, false).apply(pieces);
  }

 private:
  std::string replacement_;
  Prepend prepend_;
  bool split_;
};

// Matches and the gaps between them, in order.
struct Part {
  Span span;
  bool match;
};

std::vector<Part> parts_of(Span span, const std::vector<Span>& matches, bool invert) {
  std::vector<Part> parts;
  uint32_t at = span.begin;
  for (const Span match : matches) {
    if (match.begin > at) parts.push_back({{at, match.begin}, invert});
    parts.push_back({match, !invert});
    at = match.end;
  }
  if (at < span.end) parts.push_back({{at, span.end}, invert});
  return parts;
}

}  // namespace

void split_at_matches(Span span,
                      const std::vector<Span>& matches,
                      SplitBehavior behavior,
                      bool invert,
                      std::vector<Span>& out) {
  const std::vector<Part> parts = parts_of(span, matches, invert);
  const auto same_as_last = [&](size_t i) { return i > 0 && parts[i].match == parts[i - 1].match; };
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    bool joined = false;  // with the piece before it
    switch (behavior) {
      case SplitBehavior::kRemoved:
        if (part.match) continue;
        break;
      case SplitBehavior::kIsolated:
        break;
      case SplitBehavior::kMergedWithPrevious:
        joined = part.match && i > 0 && !parts[i - 1].match;
        break;
      case SplitBehavior::kMergedWithNext:
        joined = !part.match && i > 0 && parts[i - 1].match;
        break;
      case SplitBehavior::kContiguous:
        joined = same_as_last(i);
        break;
    }
    if (part.span.begin == part.span.end) continue;
    if (joined) {
      out.back().end = part.span.end;
    } else {
      out.push_back(part.span);
    }
  }
}

std::unique_ptr<PreTokenizerStep> make_literal_step(const std::string& literal,
                                                    SplitBehavior behavior,
                                                    bool invert) {
  return std::make_unique<LiteralStep>(literal, behavior, invert);
}

std::unique_ptr<PreTokenizerStep> make_digits_step(bool individual) {
  return std::make_unique<DigitsStep>(individual);
}

std::unique_ptr<PreTokenizerStep> make_prefix_space_step() {
  return std::make_unique<PrefixSpaceStep>();
}

std::unique_ptr<PreTokenizerStep> make_metaspace_step(const std::string& replacement,
                                                      Prepend prepend,
                                                      bool split) {
  return std::make_unique<MetaspaceStep>(replacement, prepend, split);
}

}  // namespace longspur::io

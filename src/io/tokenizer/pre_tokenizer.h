// Pre-tokenization: a text is cut into the pieces that BPE sees one at a time. A PreTokenizer is a
// list of steps; each step sees the pieces that the one before it left, as in `tokenizers`.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace longspur::io {

struct Span {
  uint32_t begin;
  uint32_t end;
};

// The pieces of a text. A step that changes text (a space in front, "▁" for " ") writes a new text
// into `owned`; the others only cut.
struct Pieces {
  std::string_view text;
  std::string owned;
  std::vector<Span> spans;
  bool at_start = false;  // the first piece begins where the whole input begins

  std::string_view operator[](size_t i) const {
    return text.substr(spans[i].begin, spans[i].end - spans[i].begin);
  }
};

class PreTokenizerStep {
 public:
  virtual ~PreTokenizerStep() = default;
  virtual void apply(Pieces& pieces) const = 0;
};

// A step that only cuts: `cut` appends the parts of the span to `out`.
class CuttingStep : public PreTokenizerStep {
 public:
  void apply(Pieces& pieces) const final;

 protected:
  virtual void cut(std::string_view text, Span span, std::vector<Span>& out) const = 0;
};

using PreTokenizer = std::vector<std::unique_ptr<const PreTokenizerStep>>;

// What becomes of the matches of a pattern (SplitDelimiterBehavior of `tokenizers`).
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

// The patterns of published vocabularies, each in one pass by hand.
enum class KnownPattern {
  kGpt2,    // 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  kLlama3,  // (?i:'s|...)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|...
  kQwen2    // the same with \p{N}
};

std::unique_ptr<PreTokenizerStep> make_pattern_step(KnownPattern pattern);
// Recognises the known patterns, else compiles the expression with PCRE2. `where` names it in
// errors.
std::unique_ptr<PreTokenizerStep> make_regex_step(const std::string& expression,
                                                  SplitBehavior behavior,
                                                  bool invert,
                                                  const std::string& where);
std::unique_ptr<PreTokenizerStep> make_literal_step(const std::string& literal,
                                                    SplitBehavior behavior,
                                                    bool invert);
std::unique_ptr<PreTokenizerStep> make_digits_step(bool individual);
// ByteLevel's add_prefix_space: a space in front of each piece that has none.
std::unique_ptr<PreTokenizerStep> make_prefix_space_step();

enum class Prepend { kNever, kFirst, kAlways };
// Metaspace: each " " becomes the replacement; one is put in front; cut before each when `split`.
std::unique_ptr<PreTokenizerStep> make_metaspace_step(const std::string& replacement,
                                                      Prepend prepend,
                                                      bool split);

// Turns the matches in `span`, in order and without overlap, into pieces.
void split_at_matches(Span span,
                      const std::vector<Span>& matches,
                      SplitBehavior behavior,
                      bool invert,
                      std::vector<Span>& out);

}  // namespace longspur::io

// Added tokens: strings that are found in the text before BPE sees it, the leftmost first, the
// longest at one place.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace longspur::io {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool control = false;      // "special": read only where the caller allows it
  bool normalized = false;   // looked for in the normalized text
  bool lstrip = false;       // takes the white space in front of it
  bool rstrip = false;       // takes the white space after it
  bool single_word = false;  // only between characters that are no part of a word
};

// The stretches of a text where control tokens may be read.
struct SpecialRange {
  uint32_t end;
  bool special;
};

// A part of a text: an added token, or (id < 0) text for BPE.
struct TextPart {
  int32_t id;
  uint32_t begin;
  uint32_t end;
};

class AddedTokenMatcher {
 public:
  AddedTokenMatcher() = default;
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

  bool empty() const { return tokens_.empty(); }
  // Cuts the whole text. `ranges` cover it in order; a control token counts only inside one range
  // that is special.
  std::vector<TextPart> split(std::string_view text, std::span<const SpecialRange> ranges) const;

 private:
  struct Node {
    int32_t token = -1;  // index into tokens_
    int32_t child = -1;
    int32_t sibling = -1;
    char byte = 0;
  };
  struct Match {
    int32_t token = -1;
    uint32_t length = 0;
  };

  int32_t child_of(int32_t node, char byte) const;
  void insert(std::string_view content, int32_t token);
  Match longest_at(std::string_view text, size_t at) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  std::vector<bool> starts_ = std::vector<bool>(256, false);  // bytes that a token begins with
};

}  // namespace longspur::io

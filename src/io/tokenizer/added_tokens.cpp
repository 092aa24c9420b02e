#include "io/tokenizer/added_tokens.h"

#include <algorithm>

#include "io/tokenizer/unicode.h"

namespace longspur::io {

namespace {

// Where the character in front of `at` begins; at > 0. An invalid byte is a character of its own.
size_t char_before(std::string_view text, size_t at) {
  size_t begin = at - 1;
  while (begin > 0 && at - begin < 4 && (uint8_t(text[begin]) & 0xc0) == 0x80) --begin;
  return begin + next_char(text.substr(begin, at - begin)).bytes == at ? begin : at - 1;
}

bool has_class_before(std::string_view text, size_t at, uint8_t classes) {
  size_t begin = char_before(text, at);
  return (next_class(text, begin, char_classes()) & classes) != 0;
}

size_t space_begin_before(std::string_view text, size_t at) {
  while (at > 0 && has_class_before(text, at, kSpace)) at = char_before(text, at);
  return at;
}

size_t space_end_after(std::string_view text, size_t at) {
  for (size_t after = at; at < text.size(); at = after)
    if (!(next_class(text, after, char_classes()) & kSpace)) break;
  return at;
}

bool stands_alone(std::string_view text, size_t begin, size_t end) {
  if (begin > 0 && has_class_before(text, begin, kWordChar)) return false;
  return end == text.size() || !(next_class(text, end, char_classes()) & kWordChar);
}

// Finds the range of rising positions.
class RangeCursor {
 public:
  explicit RangeCursor(std::span<const SpecialRange> ranges) : ranges_(ranges) {}

  const SpecialRange& at(size_t position) {
    while (i_ + 1 < ranges_.size() && ranges_[i_].end <= position) ++i_;
    return ranges_[i_];
  }

 private:
  std::span<const SpecialRange> ranges_;
  size_t i_ = 0;
};

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  nodes_.emplace_back();
  std::erase_if(tokens_, [](const AddedToken& token) { return token.content.empty(); });
  for (size_t i = 0; i < tokens_.size(); ++i) insert(tokens_[i].content, int32_t(i));
}

int32_t AddedTokenMatcher::child_of(int32_t node, char byte) const {
  int32_t child = nodes_[size_t(node)].child;
  while (child >= 0 && nodes_[size_t(child)].byte != byte) child = nodes_[size_t(child)].sibling;
  return child;
}

void AddedTokenMatcher::insert(std::string_view content, int32_t token) {
  starts_[uint8_t(content[0])] = true;
  int32_t node = 0;
  for (const char byte : content) {
    int32_t child = child_of(node, byte);
    if (child < 0) {
      child = int32_t(nodes_.size());
      nodes_.push_back({-1, -1, nodes_[size_t(node)].child, byte});
      nodes_[size_t(node)].child = child;
    }
    node = child;
  }
  if (nodes_[size_t(node)].token < 0) nodes_[size_t(node)].token = token;
}

AddedTokenMatcher::Match AddedTokenMatcher::longest_at(std::string_view text, size_t at) const {
  Match best;
  int32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    node = child_of(node, text[i]);
    if (node < 0) break;
    if (nodes_[size_t(node)].token >= 0) best = {nodes_[size_t(node)].token, uint32_t(i + 1 - at)};
  }
  return best;
}

std::vector<TextPart> AddedTokenMatcher::split(std::string_view text,
                                               std::span<const SpecialRange> ranges) const {
  std::vector<TextPart> parts;
  RangeCursor cursor(ranges);
  uint32_t done = 0;  // parts cover the text up to here
  for (size_t at = 0; !tokens_.empty() && at < text.size();) {
    const Match match = starts_[uint8_t(text[at])] ? longest_at(text, at) : Match{};
    if (match.token < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[size_t(match.token)];
    size_t begin = at;
    size_t end = at + match.length;
    at = end;
    if (token.control) {
      const SpecialRange& range = cursor.at(begin);
      if (end > range.end) at = begin + 1;  // it reaches into text of another origin
      if (end > range.end || !range.special) continue;
    }
    if (token.single_word && !stands_alone(text, begin, end)) continue;
    if (token.lstrip) begin = std::max<size_t>(space_begin_before(text, begin), done);
    if (token.rstrip) end = space_end_after(text, end);
    if (done < begin) parts.push_back({-1, done, uint32_t(begin)});
    parts.push_back({token.id, uint32_t(begin), uint32_t(end)});
    done = uint32_t(end);
  }
  if (done < text.size()) parts.push_back({-1, done, uint32_t(text.size())});
  return parts;
}

}  // namespace longspur::io

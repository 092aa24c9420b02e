// Cutting and joining, as str does.
#include "io/chat/text_ops.h"

#include <algorithm>
#include <set>

#include "io/chat/unicode.h"

namespace longspur::io::chat {
namespace {

// What finding one place costs: room for its parts, and the time to make them.
constexpr int64_t kPlaceBytes = 128;

constexpr auto kNone = std::string_view::npos;

std::set<char32_t> characters(const Text& text) {
  std::set<char32_t> out;
  for (size_t at = 0, length = 0; at < text.size(); at += length) {
    out.insert(decode_at(text.bytes(), at, &length));
  }
  return out;
}

// The right end of the last place before `end`; blanks or others.
size_t back_while(std::string_view bytes, size_t end, bool spaces) {
  while (end > 0) {
    const size_t previous = previous_code_point(bytes, end);
    size_t length = 0;
    if (is_space(decode_at(bytes, previous, &length)) != spaces) break;
    end = previous;
  }
  return end;
}

size_t skip_words(std::string_view bytes, size_t at) {
  while (at < bytes.size()) {
    size_t length = 0;
    if (is_space(decode_at(bytes, at, &length))) break;
    at += length;
  }
  return at;
}

std::vector<Text> split_blanks_left(Budget& budget, const Text& text, int64_t limit) {
  const std::string_view bytes = text.bytes();
  std::vector<Text> out;
  for (size_t at = skip_spaces(bytes, 0); at < bytes.size(); at = skip_spaces(bytes, at)) {
    budget.allocate(kPlaceBytes);
    if (limit >= 0 && static_cast<int64_t>(out.size()) >= limit) {
      out.push_back(text.substr(at, bytes.size()));
      break;
    }
    const size_t end = skip_words(bytes, at);
    out.push_back(text.substr(at, end));
    at = end;
  }
  return out;
}

std::vector<Text> split_blanks_right(Budget& budget, const Text& text, int64_t limit) {
  const std::string_view bytes = text.bytes();
  std::vector<Text> out;
  for (size_t end = back_while(bytes, bytes.size(), true); end > 0;
       end = back_while(bytes.substr(0, end), end, true)) {
    budget.allocate(kPlaceBytes);
    if (limit >= 0 && static_cast<int64_t>(out.size()) >= limit) {
      out.push_back(text.substr(0, end));
      break;
    }
    const size_t begin = back_while(bytes.substr(0, end), end, false);
    out.push_back(text.substr(begin, end));
    end = begin;
  }
  std::reverse(out.begin(), out.end());
  return out;
}

// Places of a separator, not overlapping, from the left or (the last ones) from the right.
std::vector<size_t> places(Budget& budget,
                           std::string_view text,
                           std::string_view part,
                           int64_t limit) {
  std::vector<size_t> out;
  for (size_t at = find_bytes(text, part); at != kNone && (limit < 0 || limit-- > 0);
       at = find_bytes(text, part, at + part.size())) {
    budget.allocate(kPlaceBytes);
    out.push_back(at);
  }
  return out;
}

std::vector<size_t> places_from_right(Budget& budget,
                                      std::string_view text,
                                      std::string_view part,
                                      int64_t limit) {
  const std::string reversed(text.rbegin(), text.rend());
  const std::string wanted(part.rbegin(), part.rend());
  std::vector<size_t> out = places(budget, reversed, wanted, limit);
  for (size_t& at : out) at = text.size() - at - part.size();
  std::reverse(out.begin(), out.end());
  return out;
}

}  // namespace

Text strip(const Text& text, Side side, const std::optional<Text>& chars) {
  const std::string_view bytes = text.bytes();
  const std::set<char32_t> wanted = chars ? characters(*chars) : std::set<char32_t>();
  const auto goes = [&](char32_t code) { return chars ? wanted.count(code) > 0 : is_space(code); };
  size_t begin = 0, end = bytes.size();
  size_t length = 0;
  while (side != Side::right && begin < end && goes(decode_at(bytes, begin, &length))) {
    begin += length;
  }
  while (side != Side::left && end > begin) {
    const size_t previous = previous_code_point(bytes.substr(0, end), end);
    if (previous < begin || !goes(decode_at(bytes, previous, &length))) break;
    end = previous;
  }
  return text.substr(begin, end);
}

std::vector<Text> split_blanks(Budget& budget, const Text& text, int64_t limit, bool from_right) {
  return from_right ? split_blanks_right(budget, text, limit)
                    : split_blanks_left(budget, text, limit);
}

std::vector<Text> split(
    Budget& budget, const Text& text, const Text& separator, int64_t limit, bool from_right) {
  const std::vector<size_t> cuts =
      from_right ? places_from_right(budget, text.bytes(), separator.bytes(), limit)
                 : places(budget, text.bytes(), separator.bytes(), limit);
  std::vector<Text> out;
  size_t begin = 0;
  for (const size_t cut : cuts) {
    out.push_back(text.substr(begin, cut));
    begin = cut + separator.size();
  }
  out.push_back(text.substr(begin, text.size()));
  return out;
}

std::vector<Text> split_lines(Budget& budget, const Text& text, bool keep_ends) {
  const std::string_view bytes = text.bytes();
  std::vector<Text> out;
  size_t begin = 0;
  for (size_t at = 0, length = 0; at < bytes.size();) {
    const char32_t code = decode_at(bytes, at, &length);
    if (!is_line_break(code)) {
      at += length;
      continue;
    }
    budget.allocate(kPlaceBytes);
    size_t end = at + length;
    if (code == '\r' && end < bytes.size() && bytes[end] == '\n') ++end;
    out.push_back(text.substr(begin, keep_ends ? end : at));
    begin = at = end;
  }
  if (begin < bytes.size()) out.push_back(text.substr(begin, bytes.size()));
  return out;
}

Text replace(Budget& budget, const Text& text, const Text& old, const Text& with, int64_t limit) {
  const std::string_view bytes = text.bytes();
  std::vector<size_t> cuts;
  if (old.empty()) {  // between all characters
    for (size_t at = 0, length = 0; limit < 0 || static_cast<int64_t>(cuts.size()) < limit;
         at += length) {
      budget.allocate(kPlaceBytes);
      cuts.push_back(at);
      if (at >= bytes.size()) break;
      decode_at(bytes, at, &length);
    }
  } else {
    cuts = places(budget, bytes, old.bytes(), limit);
  }
  budget.spend(static_cast<int64_t>(cuts.size()) / 8);
  budget.allocate(static_cast<int64_t>(bytes.size() + cuts.size() * sizeof(size_t)));
  budget.allocate(static_cast<int64_t>(cuts.size() * with.size()));
  Text out;
  size_t begin = 0;
  for (const size_t cut : cuts) {
    out.append(text.substr(begin, cut));
    out.append(with);
    begin = cut + old.size();
  }
  out.append(text.substr(begin, bytes.size()));
  return out;
}

Text join(Budget& budget, const Text& separator, const std::vector<Text>& parts) {
  Text out;
  for (size_t i = 0; i < parts.size(); ++i) {
    budget.allocate(static_cast<int64_t>(parts[i].size() + separator.size()));
    if (i > 0) out.append(separator);
    out.append(parts[i]);
  }
  return out;
}

int64_t count_occurrences(Budget& budget, std::string_view text, std::string_view part) {
  if (part.empty()) return static_cast<int64_t>(count_code_points(text)) + 1;
  return static_cast<int64_t>(places(budget, text, part, -1).size());
}

Text pad(Budget& budget, const Text& text, int64_t width, const Text& fill, Side side) {
  const int64_t missing = width - static_cast<int64_t>(count_code_points(text.bytes()));
  if (missing <= 0) return text;
  budget.allocate(missing * static_cast<int64_t>(fill.size()) + static_cast<int64_t>(text.size()));
  int64_t left = side == Side::left ? missing : 0;
  if (side == Side::both) left = missing / 2 + (missing & width & 1);  // as CPython rounds
  Text out;
  out.append_times(fill, static_cast<size_t>(left));
  out.append(text);
  out.append_times(fill, static_cast<size_t>(missing - left));
  return out;
}

}  // namespace longspur::io::chat

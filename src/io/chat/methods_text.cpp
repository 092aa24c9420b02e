// The methods of str.
#include <algorithm>
#include <unordered_map>

#include "io/chat/arguments.h"
#include "io/chat/methods.h"
#include "io/chat/text_ops.h"
#include "io/chat/unicode.h"

namespace longspur::io::chat {
namespace {

constexpr int64_t kBytesPerStep = 64;
constexpr auto kNone = std::string_view::npos;

// What every method pays: reading its text once and perhaps making another of its size.
void pay(Interpreter& in, const Value& self) {
  const auto size = static_cast<int64_t>(self.bytes().size());
  in.budget().spend(size / kBytesPerStep);
  in.budget().allocate(size);
}

Value texts(Interpreter& in, std::vector<Text> parts, bool special, bool tuple = false) {
  std::vector<Value> items;
  items.reserve(parts.size());
  in.budget().allocate(static_cast<int64_t>(parts.size() * (sizeof(Text) + sizeof(Value))));
  for (Text& part : parts) items.push_back(Value::text(std::move(part)));
  return in.list(std::move(items), special, tuple);
}

template <Side side>
Value strip_method(Interpreter& in, const Value& self, Arguments& given) {
  const Parameters p = Parameters::positional("strip", given, {"chars"});
  pay(in, self);
  if (!p.has_value(0)) return Value::text(strip(self.as_text(), side));
  return Value::text(strip(self.as_text(), side, p.text(0)));
}

template <Case to>
Value case_method(Interpreter& in, const Value& self, Arguments& given) {
  const Parameters p = Parameters::positional("str method", given, {});
  pay(in, self);
  return Value::text(change_case(self.as_text(), to));
}

int64_t clipped(Integer value) {
  return static_cast<int64_t>(std::clamp<Integer>(value, INT64_MIN / 2, INT64_MAX / 2));
}

template <bool from_right>
Value split_method(Interpreter& in, const Value& self, Arguments& given) {
  const Parameters p("split", given, {"sep", "maxsplit"});
  pay(in, self);
  const int64_t limit = clipped(p.integer(1, -1));
  const bool special = self.as_text().all_special();
  if (!p.has_value(0))
    return texts(in, split_blanks(in.budget(), self.as_text(), limit, from_right), special);
  require(!p.text(0).empty(), "empty separator");
  return texts(in, split(in.budget(), self.as_text(), p.text(0), limit, from_right), special);
}

Value splitlines_method(Interpreter& in, const Value& self, Arguments& given) {
  const Parameters p("splitlines", given, {"keepends"});
  pay(in, self);
  return texts(in, split_lines(in.budget(), self.as_text(), p.flag(0, false)),
               self.as_text().all_special());
}

template <bool from_right>
Value partition_method(Interpreter& in, const Value& self, Arguments& given) {
  const Parameters p = Parameters::positional("partition", given, {"sep"}, 1);
  pay(in, self);
  const Text& text = self.as_text();
  const Text& separator = p.text(0);
  require(!separator.empty(), "empty separator");
  const size_t at = from_right ? find_last_bytes(text.bytes(), separator.bytes())
                               : find_bytes(text.bytes(), separator.bytes());
  std::vector<Text> parts;
  if (at == kNone) {
    parts = from_right ? std::vector<Text>{Text(), Text(), text}
                       : std::vector<Text>{text, Text(), Text()};
  } else {
    parts = {text.substr(0, at), text.substr(at, at + separator.size()),
             text.substr(at + separator.size(), text.size())};
  }
  return texts(in, std::move(parts), text.all_special(), true);
}

// Byte range of the optional start and end arguments; nothing when it is empty of places.
std::optional<std::pair<size_t, size_t>> searched(const Value& self,
                                                  const Parameters& p,
                                                  size_t first) {
  const std::string& bytes = self.bytes();
  const bool whole = !p.has_value(first) && !p.has_value(first + 1);
  if (whole) return std::make_pair(size_t{0}, bytes.size());
  const auto size = static_cast<Integer>(count_code_points(bytes));
  const auto place = [&](size_t i, Integer fallback) {
    Integer at = p.integer(i, fallback);
    if (at < 0) at = std::max<Integer>(0, at + size);
    return at;
  };
  const Integer start = place(first, 0);
  const Integer end = std::min<Integer>(place(first + 1, size), size);
  if (start > end) return std::nullopt;
  return std::make_pair(offset_of(bytes, static_cast<size_t>(start)),
                        offset_of(bytes, static_cast<size_t>(end)));
}

Integer find_in(Interpreter& in, const Value& self, Arguments& given, bool from_right) {
  const Parameters p = Parameters::positional("find", given, {"sub", "start", "end"}, 1);
  pay(in, self);
  const std::string& wanted = p.text(0).bytes();
  const auto range = searched(self, p, 1);
  if (!range) return -1;
  const std::string_view part =
      std::string_view(self.bytes()).substr(range->first, range->second - range->first);
  const size_t at = from_right ? find_last_bytes(part, wanted) : find_bytes(part, wanted);
  if (at == kNone) return -1;
  return static_cast<Integer>(
      count_code_points(std::string_view(self.bytes()).substr(0, range->first + at)));
}

template <bool from_right>
Value find_method_(Interpreter& in, const Value& self, Arguments& given) {
  return Value::integer(find_in(in, self, given, from_right));
}

template <bool from_right>
Value index_method(Interpreter& in, const Value& self, Arguments& given) {
  const Integer at = find_in(in, self, given, from_right);
  require(at >= 0, "substring not found");
  return Value::integer(at);
}

Value count_method(Interpreter& in, const Value& self, Arguments& given) {
  const Parameters p = Parameters::positional("count", given, {"sub", "start", "end"}, 1);
  pay(in, self);
  const std::string& wanted = p.text(0).bytes();
  const auto range = searched(self, p, 1);
  if (!range) return Value::integer(0);
  return Value::integer(count_occurrences(
      in.budget(),
      std::string_view(self.bytes()).substr(range->first, range->second - range->first), wanted));
}

template <bool at_end>
Value starts_method(Interpreter& in, const Value& self, Arguments& given) {
  const Parameters p = Parameters::positional(at_end ? "endswith" : "startswith", given,
                                              {"prefix", "start", "end"}, 1);
  in.budget().spend(1);
  const auto range = searched(self, p, 1);
  const auto matches = [&](const Value& affix) {
    require_defined(affix);
    if (!affix.is_text()) {
      fail(at_end ? "endswith" : "startswith", " first arg must be str or a tuple of str, not ",
           type_name(affix));
    }
    if (!range) return false;
    const std::string_view part =
        std::string_view(self.bytes()).substr(range->first, range->second - range->first);
    return at_end ? part.ends_with(affix.bytes()) : part.starts_with(affix.bytes());
  };
  const Value& affix = p.at(0);
  if (!affix.is_sequence() || !affix.as_sequence().tuple) return Value::boolean(matches(affix));
  const auto& items = affix.as_sequence().items;
  return Value::boolean(std::any_of(items.begin(), items.end(), matches));
}

Value replace_method(Interpreter& in, const Value& self, Arguments& given) {
  const Parameters p = Parameters::positional("replace", given, {"old", "new", "count"}, 2);
  pay(in, self);
  return Value::text(
      replace(in.budget(), self.as_text(), p.text(0), p.text(1), clipped(p.integer(2, -1))));
}

Value join_method(Interpreter& in, const Value& self, Arguments& given) {
  const Parameters p = Parameters::positional("join", given, {"iterable"}, 1);
  std::vector<Text> parts;
  size_t i = 0;
  for (const Value& item : iterate(in.budget(), p.at(0))) {
    if (!item.is_text()) {
      fail("sequence item ", i, ": expected str instance, ", type_name(item), " found");
    }
    parts.push_back(item.as_text());
    ++i;
  }
  return Value::text(join(in.budget(), self.as_text(), parts));
}

template <bool suffix>
Value remove_method(Interpreter& in, const Value& self, Arguments& given) {
  const Parameters p =
      Parameters::positional(suffix ? "removesuffix" : "removeprefix", given, {"affix"}, 1);
  pay(in, self);
  const Text& text = self.as_text();
  const std::string& affix = p.text(0).bytes();
  if (affix.empty()) return self;
  if (suffix && text.bytes().ends_with(affix)) {
    return Value::text(text.substr(0, text.size() - affix.size()));
  }
  if (!suffix && text.bytes().starts_with(affix)) {
    return Value::text(text.substr(affix.size(), text.size()));
  }
  return self;
}

template <bool (*holds)(char32_t)>
Value all_method(Interpreter& in, const Value& self, Arguments& given) {
  Parameters::positional("str method", given, {});
  pay(in, self);
  const std::string& bytes = self.bytes();
  for (size_t at = 0, length = 0; at < bytes.size(); at += length) {
    if (!holds(decode_at(bytes, at, &length))) return Value::boolean(false);
  }
  return Value::boolean(!bytes.empty());
}

bool is_alnum(char32_t code) { return is_alpha(code) || is_numeric(code); }

template <bool upper>
Value cased_method(Interpreter& in, const Value& self, Arguments& given) {
  Parameters::positional("str method", given, {});
  pay(in, self);
  return Value::boolean(all_cased(self.bytes(), upper));
}

Value istitle_method(Interpreter& in, const Value& self, Arguments& given) {
  Parameters::positional("str method", given, {});
  pay(in, self);
  const std::string& bytes = self.bytes();
  bool in_word = false, any = false;
  for (size_t at = 0, length = 0; at < bytes.size(); at += length) {
    const char32_t code = decode_at(bytes, at, &length);
    const bool starts = is_upper(code) || is_title(code);
    if (starts ? in_word : (is_lower(code) && !in_word)) return Value::boolean(false);
    in_word = is_cased(code);
    any = any || in_word;
  }
  return Value::boolean(any);
}

Value isascii_method(Interpreter& in, const Value& self, Arguments& given) {
  Parameters::positional("str method", given, {});
  pay(in, self);
  return Value::boolean(is_ascii(self.bytes()));
}

Value isprintable_method(Interpreter& in, const Value& self, Arguments& given) {
  if (self.bytes().empty()) return Value::boolean(true);
  return all_method<is_printable>(in, self, given);
}

Value isidentifier_method(Interpreter& in, const Value& self, Arguments& given) {
  Parameters::positional("str method", given, {});
  pay(in, self);
  const std::string& bytes = self.bytes();
  for (size_t at = 0, length = 0; at < bytes.size(); at += length) {
    const char32_t code = decode_at(bytes, at, &length);
    if (!(is_alpha(code) || code == '_' || (at > 0 && is_decimal(code)))) {
      return Value::boolean(false);
    }
  }
  return Value::boolean(!bytes.empty());
}

template <Side side>
Value pad_method(Interpreter& in, const Value& self, Arguments& given) {
  const Parameters p = Parameters::positional("padding", given, {"width", "fillchar"}, 1);
  pay(in, self);
  const Text fill = p.has(1) ? p.text(1) : Text(" ", true);
  require(count_code_points(fill.bytes()) == 1,
          "the fill character must be exactly one character long");
  return Value::text(pad(in.budget(), self.as_text(), clipped(p.integer(0, 0)), fill, side));
}

Value zfill_method(Interpreter& in, const Value& self, Arguments& given) {
  const Parameters p = Parameters::positional("zfill", given, {"width"}, 1);
  pay(in, self);
  const Text& text = self.as_text();
  const bool sign = !text.empty() && (text.bytes()[0] == '-' || text.bytes()[0] == '+');
  const size_t skip = sign ? 1 : 0;
  Text out = text.substr(0, skip);
  out.append(pad(in.budget(), text.substr(skip, text.size()),
                 clipped(p.integer(0, 0)) - static_cast<int64_t>(skip), Text("0", true),
                 Side::left));
  return Value::text(std::move(out));
}

Value expandtabs_method(Interpreter& in, const Value& self, Arguments& given) {
  const Parameters p("expandtabs", given, {"tabsize"});
  pay(in, self);
  const int64_t size = clipped(p.integer(0, 8));
  const Text& text = self.as_text();
  Text out;
  int64_t column = 0;
  for (size_t at = 0, length = 0; at < text.size(); at += length) {
    const char32_t code = decode_at(text.bytes(), at, &length);
    if (code != '\t') {
      out.append(text.substr(at, at + length));
      column = code == '\n' || code == '\r' ? 0 : column + 1;
    } else if (size > 0) {
      const int64_t blanks = size - column % size;
      in.budget().allocate(blanks);
      out.append(std::string(static_cast<size_t>(blanks), ' '), text.special_at(at));
      column += blanks;
    }
  }
  return Value::text(std::move(out));
}

}  // namespace

bool all_cased(std::string_view bytes, bool upper) {
  bool any = false;
  for (size_t at = 0, length = 0; at < bytes.size(); at += length) {
    const char32_t code = decode_at(bytes, at, &length);
    if (is_title(code) || (upper ? is_lower(code) : is_upper(code))) return false;
    any = any || (upper ? is_upper(code) : is_lower(code));
  }
  return any;
}

Method find_text_method(std::string_view name) {
  static const std::unordered_map<std::string_view, Method> kMethods = {
      {"capitalize", case_method<Case::capitalize>},
      {"casefold", case_method<Case::fold>},
      {"center", pad_method<Side::both>},
      {"count", count_method},
      {"endswith", starts_method<true>},
      {"expandtabs", expandtabs_method},
      {"find", find_method_<false>},
      {"format", format_method},
      {"format_map", format_map_method},
      {"index", index_method<false>},
      {"isalnum", all_method<is_alnum>},
      {"isalpha", all_method<is_alpha>},
      {"isascii", isascii_method},
      {"isdecimal", all_method<is_decimal>},
      {"isdigit", all_method<is_digit>},
      {"isidentifier", isidentifier_method},
      {"islower", cased_method<false>},
      {"isnumeric", all_method<is_numeric>},
      {"isprintable", isprintable_method},
      {"isspace", all_method<is_space>},
      {"istitle", istitle_method},
      {"isupper", cased_method<true>},
      {"join", join_method},
      {"ljust", pad_method<Side::right>},
      {"lower", case_method<Case::lower>},
      {"lstrip", strip_method<Side::left>},
      {"partition", partition_method<false>},
      {"removeprefix", remove_method<false>},
      {"removesuffix", remove_method<true>},
      {"replace", replace_method},
      {"rfind", find_method_<true>},
      {"rindex", index_method<true>},
      {"rjust", pad_method<Side::left>},
      {"rpartition", partition_method<true>},
      {"rsplit", split_method<true>},
      {"rstrip", strip_method<Side::right>},
      {"split", split_method<false>},
      {"splitlines", splitlines_method},
      {"startswith", starts_method<false>},
      {"strip", strip_method<Side::both>},
      {"swapcase", case_method<Case::swap>},
      {"title", case_method<Case::title>},
      {"upper", case_method<Case::upper>},
      {"zfill", zfill_method}};
  const auto found = kMethods.find(name);
  return found == kMethods.end() ? nullptr : found->second;
}

}  // namespace longspur::io::chat

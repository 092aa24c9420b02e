// Filters that make strings.
#include <algorithm>

#include "io/chat/arguments.h"
#include "io/chat/filters.h"
#include "io/chat/objects.h"
#include "io/chat/printf.h"
#include "io/chat/text_ops.h"
#include "io/chat/unicode.h"

namespace longspur::io::chat {
namespace {

constexpr Integer kMaxIndent = 1000;  // blanks of one level

// str(value), with the price of reading it.
Text read(Interpreter& in, const Value& value) {
  Text text = in.str(value);
  in.budget().spend(static_cast<int64_t>(text.size()) / 64);
  return text;
}

Value trim(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("trim", given, {"chars"});
  const Text text = read(in, value);
  if (!p.has_value(0)) return Value::text(strip(text, Side::both), value.markup);
  return Value::text(strip(text, Side::both, p.text(0)), value.markup);
}

template <Case to>
Value change(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("case filter", given, {});
  return Value::text(change_case(read(in, value), to), value.markup);
}

bool starts_word(char c) { return std::string_view("-({[<").find(c) != std::string_view::npos; }

// jinja2's own: words start after blanks and -({[<.
Value title(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("title", given, {});
  const Text text = read(in, value);
  Text out;
  size_t begin = 0;
  const auto word = [&](size_t end) {
    if (end == begin) return;
    size_t first = 0;
    decode_at(text.bytes(), begin, &first);
    out.append(change_case(text.substr(begin, begin + first), Case::upper));
    out.append(change_case(text.substr(begin + first, end), Case::lower));
  };
  for (size_t at = 0, length = 0; at < text.size(); at += length) {
    const char32_t code = decode_at(text.bytes(), at, &length);
    if (!is_space(code) && !(code < 0x80 && starts_word(static_cast<char>(code)))) continue;
    word(at);
    out.append(text.substr(at, at + length));
    begin = at + length;
  }
  word(text.size());
  return Value::text(std::move(out));
}

Value replace_filter(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("replace", given, {"old", "new", "count"}, 2);
  const Integer limit = std::clamp<Integer>(p.integer(2, -1), -1, INT64_MAX);
  return Value::text(replace(in.budget(), read(in, value), in.str(p.at(0)), in.str(p.at(1)),
                             static_cast<int64_t>(limit)));
}

Value indent(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("indent", given, {"width", "first", "blank"});
  require_defined(value);
  if (!value.is_text()) fail("indent: found '", type_name(value), "' object, expected str");
  Text indention;
  if (p.has(0) && p.at(0).is_text()) {
    indention = p.text(0);
  } else {
    const Integer width = p.integer(0, 4);
    require(width <= kMaxIndent, "indent: found width ", integer_text(width), ", expected at most ",
            integer_text(kMaxIndent));
    indention = Text(std::string(static_cast<size_t>(std::max<Integer>(width, 0)), ' '), true);
  }
  Text text = read(in, value);
  text.append("\n", text.empty() || text.special_at(text.size() - 1));
  const std::vector<Text> lines = split_lines(in.budget(), text, false);
  in.budget().allocate(static_cast<int64_t>(lines.size() * (indention.size() + sizeof(Text))));
  Text out;
  if (p.flag(1, false)) out.append(indention);
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) {
      out.append("\n", true);
      if (p.flag(2, false) || !lines[i].empty()) out.append(indention);
    }
    out.append(lines[i]);
  }
  return Value::text(std::move(out), value.markup);
}

Value truncate(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("truncate", given, {"length", "killwords", "end", "leeway"});
  const Text end = p.has(2) ? p.text(2) : Text("...", true);
  const Integer length_left = p.integer(0, 255), leeway = p.integer(3, 5);
  const auto end_length = static_cast<Integer>(count_code_points(end.bytes()));
  require(length_left >= end_length, "truncate: length is shorter than the end mark");
  require(leeway >= 0, "truncate: found a negative leeway");
  if (length(in.budget(), value) - leeway <= length_left) return value;
  if (!value.is_text()) fail("truncate: found '", type_name(value), "' object, expected str");
  const Text text = read(in, value);
  Text out = text.substr(0, offset_of(text.bytes(), static_cast<size_t>(length_left - end_length)));
  if (!p.flag(1, false)) {
    out = split(in.budget(), out, Text(" ", true), 1, true).front();
  }
  out.append(value.markup ? escape_html(end) : end);
  return Value::text(std::move(out), value.markup);
}

Value center(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("center", given, {"width"});
  const Integer width = std::clamp<Integer>(p.integer(0, 80), 0, INT64_MAX);
  return Value::text(
      pad(in.budget(), read(in, value), static_cast<int64_t>(width), Text(" ", true), Side::both));
}

Value string(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("string", given, {});
  return value.is_text() ? value : Value::text(in.str(value));
}

Value safe(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("safe", given, {});
  return Value::text(in.str(value), true);
}

Value escape(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("escape", given, {});
  if (value.markup) return value;
  const Text text = read(in, value);
  in.budget().allocate(static_cast<int64_t>(text.size()) * 5);
  return Value::text(escape_html(text), true);
}

Value force_escape(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("forceescape", given, {});
  const Text text = read(in, value);
  in.budget().allocate(static_cast<int64_t>(text.size()) * 5);
  return Value::text(escape_html(text), true);
}

Value format(Interpreter& in, const Value& value, Arguments& given) {
  require(given.positional.empty() || given.named.empty(),
          "format: positional and keyword arguments cannot be mixed");
  const Value text = value.is_text() ? value : Value::text(in.str(value));
  if (given.named.empty()) {
    return percent_format(in.budget(), text, in.list(given.positional, true, true));
  }
  auto dict = std::make_shared<Dict>();
  for (const auto& [name, argument] : given.named) dict->set(Value::text(name, true), argument);
  return percent_format(in.budget(), text, make_dict(std::move(dict), true));
}

Value word_count(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("wordcount", given, {});
  const Text text = read(in, value);
  Integer count = 0;
  bool in_word = false;
  for (size_t at = 0, length = 0; at < text.size(); at += length) {
    const char32_t code = decode_at(text.bytes(), at, &length);
    const bool word = is_alpha(code) || is_numeric(code) || code == '_';
    if (word && !in_word) ++count;
    in_word = word;
  }
  return Value::integer(count);
}

// Percent-encoding of everything but letters, digits and the characters in `safe`.
Text quote(const Text& text, std::string_view safe) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  Text out;
  text.for_each_run([&](std::string_view run, bool special) {
    std::string bytes;
    for (const char c : run) {
      const auto byte = static_cast<unsigned char>(c);
      const bool alphanumeric =
          (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
      if (alphanumeric || safe.find(c) != std::string_view::npos) {
        bytes += c;
      } else {
        bytes += '%';
        bytes += kHex[byte >> 4];
        bytes += kHex[byte & 15];
      }
    }
    out.append(bytes, special);
  });
  return out;
}

Value url_encode(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("urlencode", given, {});
  const bool pairs =
      value.is_dict() || (!value.is_text() && !value.is_number() && !value.is_none());
  if (!pairs) return Value::text(quote(read(in, value), "_.-~/"));
  const auto quoted = [&in](const Value& part) {
    const Text text = quote(read(in, part), "_.-~ ");
    return replace(in.budget(), text, Text(" ", true), Text("+", true), -1);
  };
  Value source = value;
  if (value.is_dict()) {
    const View view{View::Kind::items, std::get<DictPtr>(value.data), value.special};
    source = {Value::Data(std::make_shared<const View>(view)), value.special};
  }
  std::vector<Text> parts;
  for (const Value& pair : iterate(in.budget(), source)) {
    const std::vector<Value> both = iterate(in.budget(), pair);
    require(both.size() == 2, "urlencode: expected pairs of key and value");
    Text part = quoted(both[0]);
    part.append("=", true);
    part.append(quoted(both[1]));
    parts.push_back(std::move(part));
  }
  return Value::text(join(in.budget(), Text("&", true), parts));
}

// Without comments and tags, blanks normalised, the references that escape makes resolved.
Value strip_tags(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("striptags", given, {});
  Text text = read(in, value);
  Text rest;
  size_t begin = 0;
  for (size_t start = find_bytes(text.bytes(), "<"); start != std::string::npos;
       start = find_bytes(text.bytes(), "<", begin)) {
    const bool comment = text.bytes().compare(start, 4, "<!--") == 0;
    const std::string_view close = comment ? "-->" : ">";
    const size_t end = find_bytes(text.bytes(), close, start + (comment ? 4 : 0));
    if (end == std::string::npos) break;
    rest.append(text.substr(begin, start));
    begin = end + close.size();
  }
  rest.append(text.substr(begin, text.size()));
  text = std::move(rest);
  text = join(in.budget(), Text(" ", true), split_blanks(in.budget(), text, -1, false));
  static constexpr std::pair<std::string_view, std::string_view> kReferences[] = {
      {"&lt;", "<"},   {"&gt;", ">"},    {"&#39;", "'"},
      {"&#34;", "\""}, {"&quot;", "\""}, {"&amp;", "&"}};
  for (const auto& [name, character] : kReferences) {
    text = replace(in.budget(), text, Text(std::string(name), true),
                   Text(std::string(character), false), -1);
  }
  return Value::text(std::move(text));
}

std::optional<std::string> json_indent(const Parameters& p, size_t i) {
  if (!p.has_value(i)) return std::nullopt;
  if (p.at(i).is_text()) return p.text(i).bytes();
  const Integer width = p.integer(i, 0);
  require(width <= kMaxIndent, "tojson: found indent ", integer_text(width), ", expected at most ",
          integer_text(kMaxIndent));
  return std::string(static_cast<size_t>(std::max<Integer>(width, 0)), ' ');
}

// transformers' own: json.dumps without escaping for HTML.
Value to_json_filter(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("tojson", given, {"ensure_ascii", "indent", "separators", "sort_keys"});
  require_defined(value);
  JsonStyle style;
  style.ensure_ascii = p.flag(0, false);
  style.indent = json_indent(p, 1);
  style.sort_keys = p.flag(3, false);
  if (p.has_value(2)) {
    const std::vector<Value> pair = iterate(in.budget(), p.at(2));
    require(pair.size() == 2 && pair[0].is_text() && pair[1].is_text(),
            "tojson: expected two strings as separators");
    style.item_separator = pair[0].bytes();
    style.key_separator = pair[1].bytes();
  }
  return Value::text(to_json(in.budget(), value, style));
}

}  // namespace

const FilterTable& text_filters() {
  static const FilterTable kFilters = {{"capitalize", change<Case::capitalize>},
                                       {"center", center},
                                       {"e", escape},
                                       {"escape", escape},
                                       {"forceescape", force_escape},
                                       {"format", format},
                                       {"indent", indent},
                                       {"lower", change<Case::lower>},
                                       {"replace", replace_filter},
                                       {"safe", safe},
                                       {"string", string},
                                       {"striptags", strip_tags},
                                       {"title", title},
                                       {"tojson", to_json_filter},
                                       {"trim", trim},
                                       {"truncate", truncate},
                                       {"upper", change<Case::upper>},
                                       {"urlencode", url_encode},
                                       {"wordcount", word_count}};
  return kFilters;
}

}  // namespace longspur::io::chat

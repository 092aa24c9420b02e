// Paths are split at dots; parts of digits are indices.
#include "io/chat/attribute_path.h"

#include <algorithm>

#include "io/chat/numbers.h"
#include "io/chat/text_ops.h"
#include "io/chat/unicode.h"

namespace longspur::io::chat {
namespace {

bool all_digits(std::string_view text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

AttributePath::AttributePath(Budget& budget, const Value& attribute, Value fallback)
    : fallback_(std::move(fallback)) {
  if (attribute.is_none()) return;
  if (!attribute.is_text()) {
    parts_.push_back(attribute);
    return;
  }
  for (Text& part : split(budget, attribute.as_text(), Text(".", true), -1, false)) {
    if (all_digits(part.bytes())) {
      parts_.push_back(Value::integer(*parse_integer(part.bytes(), 10)));
    } else {
      parts_.push_back(Value::text(std::move(part)));
    }
  }
}

Value AttributePath::get(Interpreter& in, Value item) const {
  in.budget().spend(1 + static_cast<int64_t>(parts_.size()));
  for (const Value& part : parts_) {
    item = in.item(item, part);
    if (item.is_undefined() && !fallback_.is_none()) item = fallback_;
  }
  return item;
}

std::vector<AttributePath> attribute_paths(Budget& budget, const Value& attribute) {
  std::vector<AttributePath> out;
  if (!attribute.is_text()) {
    out.emplace_back(budget, attribute);
    return out;
  }
  for (Text& part : split(budget, attribute.as_text(), Text(",", true), -1, false)) {
    out.emplace_back(budget, Value::text(std::move(part)));
  }
  return out;
}

Value ignore_case(Interpreter& in, const Value& value) {
  if (!value.is_text()) return value;
  in.budget().spend(static_cast<int64_t>(value.bytes().size()) / 64);
  in.budget().allocate(static_cast<int64_t>(value.bytes().size()));
  return Value::text(change_case(value.as_text(), Case::lower));
}

}  // namespace longspur::io::chat

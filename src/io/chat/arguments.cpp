// Binding by position, then by name.
#include "io/chat/arguments.h"

#include <algorithm>

namespace longspur::io::chat {

Parameters::Parameters(std::string_view function,
                       const Arguments& given,
                       std::initializer_list<std::string_view> names,
                       size_t needed)
    : function_(function), values_(names.size(), nullptr) {
  if (given.positional.size() > names.size()) {
    fail(function, "() takes at most ", names.size(), " argument(s), found ",
         given.positional.size());
  }
  for (size_t i = 0; i < given.positional.size(); ++i) values_[i] = &given.positional[i];
  for (const auto& [name, value] : given.named) {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) fail(function, "() has no argument '", name, "'");
    const Value*& slot = values_[static_cast<size_t>(found - names.begin())];
    if (slot != nullptr) fail(function, "() got argument '", name, "' twice");
    slot = &value;
  }
  for (size_t i = 0; i < needed; ++i) {
    if (values_[i] == nullptr) {
      fail(function, "() is missing its argument '", *(names.begin() + i), "'");
    }
  }
}

Parameters Parameters::positional(std::string_view function,
                                  const Arguments& given,
                                  std::initializer_list<std::string_view> names,
                                  size_t needed) {
  require(given.named.empty(), function, "() takes no keyword arguments");
  return {function, given, names, needed};
}

Integer Parameters::integer(size_t i, Integer fallback) const {
  if (!has_value(i)) return fallback;
  require_defined(at(i));
  if (!at(i).is_integral()) {
    fail(function_, "(): found '", type_name(at(i)), "' object, expected an integer");
  }
  return at(i).as_integer();
}

const Text& Parameters::text(size_t i) const {
  require_defined(at(i));
  if (!at(i).is_text()) {
    fail(function_, "(): found '", type_name(at(i)), "' object, expected str");
  }
  return at(i).as_text();
}

}  // namespace longspur::io::chat

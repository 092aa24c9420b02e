// Parameters of filters, tests and methods by position and name, with Python's complaints.
#pragma once

#include <initializer_list>
#include <optional>
#include <string_view>
#include <vector>

#include "io/chat/value.h"

namespace longspur::io::chat {

class Parameters {
 public:
  // names: in order; the first `needed` must be given.
  Parameters(std::string_view function,
             const Arguments& given,
             std::initializer_list<std::string_view> names,
             size_t needed = 0);

  // The same for functions that know no names.
  static Parameters positional(std::string_view function,
                               const Arguments& given,
                               std::initializer_list<std::string_view> names,
                               size_t needed = 0);

  bool has(size_t i) const { return values_[i] != nullptr; }
  bool has_value(size_t i) const { return has(i) && !values_[i]->is_none(); }  // and not None
  const Value& at(size_t i) const { return *values_[i]; }
  Value or_else(size_t i, Value fallback) const { return has(i) ? at(i) : std::move(fallback); }
  bool flag(size_t i, bool fallback) const { return has(i) ? truthy(at(i)) : fallback; }
  Integer integer(size_t i, Integer fallback) const;  // None counts as not given
  const Text& text(size_t i) const;                   // fails unless it is a string

 private:
  std::string_view function_;
  std::vector<const Value*> values_;
};

}  // namespace longspur::io::chat

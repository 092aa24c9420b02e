#include "app/cli/config_file.h"

#include <toml++/toml.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <optional>

#include "app/cli/command_line.h"
#include "base/error.h"

namespace longspur::app::cli {

namespace {

const Option* find_option(const Verb& verb, std::string_view name) {
  for (const Option& option : verb.options)
    if (option.name == name && !option.only_flag) return &option;
  return nullptr;
}

std::string dashed(std::string_view key) {
  std::string name(key);
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

// "run.toml line 3: max-tokens"
std::string where_of(const std::string& file, const toml::node& node, std::string_view key) {
  return concat(file, " line ", node.source().begin.line, ": ", key);
}

std::string_view toml_type(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::string:
      return "a text";
    case toml::node_type::integer:
      return "an integer";
    case toml::node_type::floating_point:
      return "a number";
    case toml::node_type::boolean:
      return "a boolean";
    case toml::node_type::array:
      return "an array";
    case toml::node_type::table:
      return "a table";
    default:
      return "a date or time";
  }
}

template <class T>
std::optional<Value> list_value(const toml::node& node) {
  std::vector<T> items;
  if (const auto single = node.value_exact<T>()) return std::vector<T>{*single};
  const toml::array* array = node.as_array();
  if (array == nullptr) return std::nullopt;
  for (const toml::node& item : *array) {
    const auto value = item.value_exact<T>();
    if (!value) return std::nullopt;
    items.push_back(*value);
  }
  return items;
}

template <class T>
std::optional<Value> plain_value(const toml::node& node) {
  if (const auto value = node.value_exact<T>()) return Value(*value);
  return std::nullopt;
}

std::optional<Value> value_of(const Option& option, const toml::node& node) {
  switch (option.type) {
    case OptionType::kFlag:
      return plain_value<bool>(node);
    case OptionType::kInteger:
      return plain_value<int64_t>(node);
    case OptionType::kNumber:
      if (const auto integer = node.value_exact<int64_t>()) return Value(double(*integer));
      return plain_value<double>(node);
    case OptionType::kText:
      return plain_value<std::string>(node);
    case OptionType::kTextList:
      return list_value<std::string>(node);
    case OptionType::kIntegerList:
      return list_value<int64_t>(node);
  }
  throw InternalError("value_of: found a value outside the enum");
}

Value checked_value(const Option& option, const toml::node& node, const std::string& where) {
  std::optional<Value> value = value_of(option, node);
  if (!value) {
    throw UsageError(concat(where, ": found ", toml_type(node), ", expected ",
                            type_name(option.type), is_list(option.type) ? " or several" : ""));
  }
  const auto* number = std::get_if<double>(&*value);
  if (number != nullptr && !std::isfinite(*number))
    throw UsageError(concat(where, ": found ", *number, ", expected a finite number"));
  check_value(option, *value, where);
  return std::move(*value);
}

std::string hint(const std::string& name, const std::vector<Option>& table) {
  std::vector<std::string> known;
  for (const Option& option : table)
    if (!option.only_flag) known.push_back(option.name);
  const std::string near = nearest_name(name, known);
  return near.empty() ? "" : concat("; did you mean ", near, "?");
}

void take(ConfigValues& values,
          const Option& option,
          const toml::node& node,
          const std::string& where) {
  if (values.contains(option.name)) throw UsageError(concat(where, ": found twice, expected once"));
  values[option.name] = checked_value(option, node, where);
}

// A table [verb]: every key must be an option of that verb.
ConfigValues verb_values(const toml::table& table, const Verb& verb, const std::string& file) {
  ConfigValues values;
  for (const auto& [key, node] : table) {
    const std::string name = dashed(key.str());
    const std::string where = where_of(file, node, key.str());
    const Option* option = find_option(verb, name);
    if (option == nullptr) {
      throw UsageError(concat(where, ": unknown key, ", verb.name, " has no such option",
                              hint(name, verb.options)));
    }
    take(values, *option, node, where);
  }
  return values;
}

// A key at the top may belong to another verb; it is checked all the same.
void take_top_level(ConfigValues& values,
                    std::string_view key,
                    const toml::node& node,
                    const std::string& file,
                    const Verb& verb,
                    std::span<const Verb> verbs) {
  const std::string name = dashed(key);
  const std::string where = where_of(file, node, key);
  if (const Option* option = find_option(verb, name)) return take(values, *option, node, where);
  for (const Verb& other : verbs) {
    if (const Option* option = find_option(other, name)) {
      checked_value(*option, node, where);
      return;
    }
  }
  throw UsageError(
      concat(where, ": unknown key, no verb has such an option", hint(name, verb.options)));
}

const Verb* verb_named(std::string_view name, std::span<const Verb> verbs) {
  for (const Verb& verb : verbs)
    if (verb.name == dashed(name)) return &verb;
  return nullptr;
}

}  // namespace

ConfigValues parse_config(std::string_view text,
                          const std::string& name,
                          const Verb& verb,
                          std::span<const Verb> verbs) {
  toml::table document;
  try {
    document = toml::parse(text, std::string_view(name));
  } catch (const toml::parse_error& error) {
    throw UsageError(concat(name, " line ", error.source().begin.line, ": ", error.description()));
  }
  ConfigValues values, own;
  for (const auto& [key, node] : document) {
    const toml::table* table = node.as_table();
    const Verb* section = table == nullptr ? nullptr : verb_named(key.str(), verbs);
    if (section == nullptr) {
      take_top_level(values, key.str(), node, name, verb, verbs);
      continue;
    }
    ConfigValues checked = verb_values(*table, *section, name);
    if (section->name == verb.name) own = std::move(checked);
  }
  own.merge(values);  // keeps what the verb's own table said
  return own;
}

ConfigValues read_config_file(const std::string& path,
                              const Verb& verb,
                              std::span<const Verb> verbs) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file) throw UsageError(concat("--config ", path, ": cannot be read"));
  return parse_config(text, path, verb, verbs);
}

}  // namespace longspur::app::cli

#include "app/cli/settings.h"

#include <nlohmann/json.hpp>

#include "base/error.h"

namespace longspur::app::cli {

namespace {

// A variable holds one text; lists may also be written as a JSON array.
std::vector<std::string> environment_texts(const Option& option, const char* text) {
  if (!is_list(option.type) || *text != '[') return {text};
  const auto array = nlohmann::json::parse(text, nullptr, false);
  if (!array.is_array()) return {text};
  std::vector<std::string> texts;
  for (const auto& item : array)
    texts.push_back(item.is_string() ? item.get<std::string>() : item.dump());
  return texts;
}

// TOML basic strings and JSON strings share these escapes; \u007f is the one that JSON leaves bare.
std::string toml_string(const std::string& text) {
  const auto replace = nlohmann::json::error_handler_t::replace;
  std::string out;
  for (const char c : nlohmann::json(text).dump(-1, ' ', false, replace)) {
    if (c == '\x7f') {
      out += "\\u007F";
    } else {
      out += c;
    }
  }
  return out;
}

template <class T, class Write>
std::string toml_array(const std::vector<T>& items, Write write) {
  std::string out;
  for (const T& item : items) out += concat(out.empty() ? "" : ", ", write(item));
  return concat("[", out, "]");
}

struct ToToml {
  std::string operator()(std::monostate) const { return {}; }
  std::string operator()(bool value) const { return value ? "true" : "false"; }
  std::string operator()(int64_t value) const { return std::to_string(value); }
  std::string operator()(double value) const { return nlohmann::json(value).dump(); }
  std::string operator()(const std::string& value) const { return toml_string(value); }
  std::string operator()(const std::vector<std::string>& value) const {
    return toml_array(value, toml_string);
  }
  std::string operator()(const std::vector<int64_t>& value) const {
    return toml_array(value, [](int64_t item) { return std::to_string(item); });
  }
};

}  // namespace

std::string_view source_name(Source source) {
  switch (source) {
    case Source::kDefault:
      return "default";
    case Source::kConfig:
      return "config";
    case Source::kEnvironment:
      return "environment";
    case Source::kFlag:
      return "flag";
  }
  throw InternalError("source_name: found a value outside the enum");
}

void Settings::set(const Option& option, Value value, Source source) {
  LONGSPUR_ASSERT(!index_.contains(option.name));
  index_[option.name] = settings_.size();
  settings_.push_back({&option, std::move(value), source});
}

const Setting& Settings::find(std::string_view name) const {
  const auto found = index_.find(name);
  if (found == index_.end())
    throw InternalError(concat("option '", name, "': not in the table of this verb"));
  return settings_[found->second];
}

template <class T>
const T& Settings::get(std::string_view name) const {
  const T* value = std::get_if<T>(&find(name).value);
  if (value == nullptr)
    throw InternalError(concat("option '", name, "': not set, or of another type"));
  return *value;
}

bool Settings::flag(std::string_view name) const { return get<bool>(name); }
int64_t Settings::integer(std::string_view name) const { return get<int64_t>(name); }
double Settings::number(std::string_view name) const { return get<double>(name); }
const std::string& Settings::text(std::string_view name) const { return get<std::string>(name); }
std::string Settings::text_or_empty(std::string_view name) const {
  return has(name) ? text(name) : std::string();
}
const std::vector<std::string>& Settings::texts(std::string_view name) const {
  return get<std::vector<std::string>>(name);
}
const std::vector<int64_t>& Settings::integers(std::string_view name) const {
  return get<std::vector<int64_t>>(name);
}

bool Settings::has(std::string_view name) const {
  return !std::holds_alternative<std::monostate>(find(name).value);
}

bool Settings::given(std::string_view name) const { return find(name).source != Source::kDefault; }

const std::string& Settings::required(std::string_view name) const {
  if (!has(name)) {
    const Option& option = *find(name).option;
    throw UsageError(concat("found no ", flag_name(option), ", expected ", flag_name(option), " ",
                            option.placeholder, " (", option.help, ")"));
  }
  return text(name);
}

Settings merge_settings(const std::vector<Option>& table,
                        const FlagTexts& flags,
                        const Environment& environment,
                        const ConfigValues& config) {
  Settings settings;
  for (const Option& option : table) {
    const std::string variable = environment_name(option);
    const char* text = option.only_flag ? nullptr : environment(variable);
    if (const auto flag = flags.find(option.name); flag != flags.end()) {
      settings.set(option, parse_value(option, flag->second, flag_name(option)), Source::kFlag);
    } else if (text != nullptr && *text != '\0') {
      settings.set(option, parse_value(option, environment_texts(option, text), variable),
                   Source::kEnvironment);
    } else if (const auto value = config.find(option.name); value != config.end()) {
      settings.set(option, value->second, Source::kConfig);
    } else {
      settings.set(option, default_value(option), Source::kDefault);
    }
  }
  return settings;
}

std::string print_config_toml(const Settings& settings) {
  std::string out;
  for (const Setting& setting : settings.all()) {
    if (setting.option->only_flag) continue;
    const std::string value = std::visit(ToToml{}, setting.value);
    if (value.empty()) {
      out += concat("# ", setting.option->name, " =  # not set\n");
    } else {
      out += concat(setting.option->name, " = ", value, "  # ", source_name(setting.source), "\n");
    }
  }
  return out;
}

}  // namespace longspur::app::cli

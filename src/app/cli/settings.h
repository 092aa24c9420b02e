// The effective value of every option of one run, and where it came from: flag, else environment,
// else configuration file, else default.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "app/cli/option.h"

namespace longspur::app::cli {

enum class Source { kDefault, kConfig, kEnvironment, kFlag };
std::string_view source_name(Source source);

struct Setting {
  const Option* option = nullptr;  // a row of the verb's table
  Value value;
  Source source = Source::kDefault;
};

class Settings {
 public:
  void set(const Option& option, Value value, Source source);

  // Asking for an option that the verb lacks, or with the wrong type, is a bug: InternalError.
  bool flag(std::string_view name) const;
  int64_t integer(std::string_view name) const;
  double number(std::string_view name) const;
  const std::string& text(std::string_view name) const;
  std::string text_or_empty(std::string_view name) const;  // empty when not set
  const std::vector<std::string>& texts(std::string_view name) const;
  const std::vector<int64_t>& integers(std::string_view name) const;

  bool has(std::string_view name) const;    // set, or has a default
  bool given(std::string_view name) const;  // by flag, environment or file
  // The text, or UsageError that says how to give it.
  const std::string& required(std::string_view name) const;

  // In the order of the table.
  const std::vector<Setting>& all() const { return settings_; }

 private:
  const Setting& find(std::string_view name) const;
  template <class T>
  const T& get(std::string_view name) const;

  std::vector<Setting> settings_;
  std::map<std::string, size_t, std::less<>> index_;
};

// What a file of settings said: option name -> value, checked against the table.
using ConfigValues = std::map<std::string, Value, std::less<>>;
// Texts of the flags on the command line: option name -> texts in order.
using FlagTexts = std::map<std::string, std::vector<std::string>, std::less<>>;
// Looks up an environment variable; nullptr: not set.
using Environment = std::function<const char*(const std::string&)>;

Settings merge_settings(const std::vector<Option>& table,
                        const FlagTexts& flags,
                        const Environment& environment,
                        const ConfigValues& config);

// A TOML document that, read by --config, gives the same settings; each line says its source.
std::string print_config_toml(const Settings& settings);

}  // namespace longspur::app::cli

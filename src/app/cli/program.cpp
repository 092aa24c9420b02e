#include "app/cli/program.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdlib>
#include <new>
#include <nlohmann/json.hpp>

#include "app/cli/command_line.h"
#include "app/cli/config_file.h"
#include "app/cli/console.h"
#include "app/cli/help.h"
#include "app/cli/interrupt.h"
#include "app/cli/verb.h"
#include "base/error.h"

namespace longspur::app::cli {

namespace {

struct ToJson {
  nlohmann::ordered_json operator()(std::monostate) const { return nullptr; }
  template <class T>
  nlohmann::ordered_json operator()(const T& value) const {
    return value;
  }
};

void print_config(const Settings& settings) {
  if (!settings.flag("json")) return write_stdout(print_config_toml(settings));
  nlohmann::ordered_json object = nlohmann::ordered_json::object();
  for (const Setting& setting : settings.all())
    if (!setting.option->only_flag)
      object[setting.option->name] = std::visit(ToJson{}, setting.value);
  write_json(object);
}

void start_logging(const std::string& level) {
  auto logger = spdlog::stderr_color_mt("longspur");
  logger->set_pattern("%H:%M:%S.%e %^%l%$ %v");
  logger->set_level(spdlog::level::from_str(level));
  spdlog::set_default_logger(std::move(logger));
}

const char* config_path(const FlagTexts& flags) {
  if (const auto flag = flags.find("config"); flag != flags.end())
    return flag->second.back().c_str();
  const char* path = std::getenv("LONGSPUR_CONFIG");
  return path != nullptr && *path != '\0' ? path : nullptr;
}

int run_verb(const Verb& verb, std::span<const std::string> arguments) {
  const FlagTexts flags = parse_command_line(verb, arguments);
  if (const auto help = flags.find("help"); help != flags.end() && help->second.back() == "true") {
    write_stdout(verb_help(verb));
    return 0;
  }
  ConfigValues config;
  if (const char* path = config_path(flags); path != nullptr)
    config = read_config_file(path, verb, all_verbs());
  const auto environment = [](const std::string& name) -> const char* {
    return std::getenv(name.c_str());
  };
  const Settings settings = merge_settings(verb.options, flags, environment, config);
  if (settings.flag("print-config")) {
    print_config(settings);
    return 0;
  }
  start_logging(settings.text("log-level"));
  return verb.run(settings);
}

const Verb& verb_or_usage_error(const std::string& word) {
  if (const Verb* verb = find_verb(word)) return *verb;
  std::vector<std::string> names;
  for (const Verb& verb : all_verbs())
    if (!verb.hidden) names.push_back(verb.name);
  const std::string near = nearest_name(word, names);
  throw UsageError(concat("unknown verb '", word, "'; ",
                          near.empty() ? "" : concat("did you mean ", near, "? "),
                          "see longspur --help"));
}

int dispatch(std::span<const std::string> arguments) {
  if (arguments.empty()) throw UsageError("found no verb, expected one; see longspur --help");
  const std::string& first = arguments[0];
  if (first == "--version" || first == "-V" || first == "version") {
    write_stdout(version_line() + "\n");
    return 0;
  }
  if (first == "--help" || first == "-h" || first == "help") {
    const bool about_verb = arguments.size() > 1 && first == "help";
    write_stdout(about_verb ? verb_help(verb_or_usage_error(arguments[1]))
                            : program_help(all_verbs()));
    return 0;
  }
  if (first.starts_with("-")) {
    throw UsageError(
        concat("found '", one_line(first), "', expected a verb first; see longspur --help"));
  }
  return run_verb(verb_or_usage_error(first), arguments.subspan(1));
}

int fail(int code, std::string_view message) {
  write_stderr(concat("longspur: ", one_line(message), "\n"));
  return code;
}

}  // namespace

std::string version_line() {
  return concat("longspur ", LONGSPUR_VERSION, " (", LONGSPUR_BUILD_INFO, ")");
}

int run_program(std::span<const std::string> arguments) {
  install_signal_handlers();
  try {
    return dispatch(arguments);
  } catch (const UsageError& error) {
    return fail(2, error.what());
  } catch (const BrokenPipe&) {
    return 0;  // whoever read has had enough
  } catch (const Interrupted& interrupted) {
    return fail(interrupted.exit_code(), "interrupted");
  } catch (const std::bad_alloc&) {
    return fail(1, "out of memory");
  } catch (const std::exception& error) {
    return fail(1, error.what());
  }
}

}  // namespace longspur::app::cli

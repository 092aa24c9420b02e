// `longspur completion`: prints a completion script for a shell.
#include "app/cli/completion.h"

#include <nlohmann/json.hpp>

#include "app/cli/console.h"
#include "app/cli/option_table.h"
#include "app/cli/verbs/verbs.h"

namespace longspur::app::cli {

namespace {

std::string script_for(const std::string& shell) {
  if (shell == "bash") return bash_completion(all_verbs());
  if (shell == "zsh") return zsh_completion(all_verbs());
  return fish_completion(all_verbs());
}

int run(const Settings& settings) {
  const std::string& shell = settings.required("shell");
  const std::string script = script_for(shell);
  if (settings.flag("json")) {
    write_json({{"shell", shell}, {"script", script}});
  } else {
    write_stdout(script);
  }
  return 0;
}

}  // namespace

Verb completion_verb() {
  return {
      .name = "completion",
      .summary = "prints a completion script for bash, zsh or fish",
      .examples = {"source <(longspur completion bash)",
                   "longspur completion zsh > ~/.zfunc/_longspur",
                   "longspur completion fish > ~/.config/fish/completions/longspur.fish"},
      .options = verb_options({{.name = "shell",
                                .group = "Output",
                                .help = "which shell",
                                .placeholder = "SHELL",
                                .choices = {"bash", "zsh", "fish"},
                                .positional = true}},
                              {}),
      .run = run,
  };
}

}  // namespace longspur::app::cli

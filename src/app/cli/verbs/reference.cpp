// `longspur reference` (hidden): prints docs/cli.md.
#include "app/cli/console.h"
#include "app/cli/help.h"
#include "app/cli/option_table.h"
#include "app/cli/verbs/verbs.h"

namespace longspur::app::cli {

namespace {

int run(const Settings&) {
  write_stdout(reference_page(all_verbs()));
  return 0;
}

}  // namespace

Verb reference_verb() {
  return {
      .name = "reference",
      .summary = "prints docs/cli.md",
      .examples = {"longspur reference > docs/cli.md"},
      .options = verb_options({}, {}),
      .run = run,
      .hidden = true,
  };
}

}  // namespace longspur::app::cli

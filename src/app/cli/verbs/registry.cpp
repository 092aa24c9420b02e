// Every verb, in the order of help.
#include "app/cli/verb.h"
#include "app/cli/verbs/verbs.h"

namespace longspur::app::cli {

const std::vector<Verb>& all_verbs() {
  static const std::vector<Verb> verbs = {
      generate_verb(), chat_verb(),       tokenize_verb(),  logits_verb(), perplexity_verb(),
      eval_verb(),     quantize_verb(),   calibrate_verb(), bench_verb(),  inspect_verb(),
      doctor_verb(),   completion_verb(), reference_verb(),
  };
  return verbs;
}

const Verb* find_verb(std::string_view name) {
  for (const Verb& verb : all_verbs())
    if (verb.name == name) return &verb;
  return nullptr;
}

}  // namespace longspur::app::cli

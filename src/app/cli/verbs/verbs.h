// The verbs' makers; registry.cpp lists them. A new verb is a file here, its line below and its
// line in registry.cpp.
#pragma once

#include "app/cli/verb.h"

namespace longspur::app::cli {

Verb bench_verb();
Verb calibrate_verb();
Verb chat_verb();
Verb completion_verb();
Verb doctor_verb();
Verb eval_verb();
Verb generate_verb();
Verb inspect_verb();
Verb logits_verb();
Verb perplexity_verb();
Verb quantize_verb();
Verb reference_verb();
Verb tokenize_verb();

}  // namespace longspur::app::cli

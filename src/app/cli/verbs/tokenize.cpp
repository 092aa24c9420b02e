// `longspur tokenize`: text to token ids and back, with the tokenizer alone.
#include <nlohmann/json.hpp>

#include "app/cli/console.h"
#include "app/cli/model.h"
#include "app/cli/option_table.h"
#include "app/cli/token_lists.h"
#include "app/cli/verbs/verbs.h"
#include "base/error.h"

namespace longspur::app::cli {

namespace {

using Json = nlohmann::ordered_json;

std::string input_of(const Settings& settings) {
  if (settings.has("prompt")) return settings.text("prompt");
  if (stdin_is_terminal())
    throw UsageError("tokenize: found no input, expected --prompt or something on stdin");
  return read_stdin();
}

void print(const Settings& settings,
           const io::Tokenizer& tokenizer,
           const std::vector<int32_t>& ids,
           const std::string& text) {
  if (!settings.flag("json")) {
    write_stdout(settings.flag("decode") ? text : json_line(ids));
    return;
  }
  Json pieces = Json::array();
  for (const int32_t id : ids) pieces.push_back(tokenizer.piece(id));
  write_json({{"ids", ids}, {"pieces", std::move(pieces)}, {"text", text}});
}

int run(const Settings& settings) {
  if (settings.flag("decode") && settings.flag("bos"))
    throw UsageError("tokenize: found --bos with --decode, expected one of them");
  const std::string input = input_of(settings);
  const auto tokenizer = open_tokenizer(settings.required("model"));
  const bool special = settings.flag("special");
  if (settings.flag("decode")) {
    const std::vector<int32_t> ids = parse_token_list(input, "stdin", tokenizer->vocab_size());
    print(settings, *tokenizer, ids, tokenizer->decode(ids, {.skip_special = !special}));
  } else {
    const auto ids = tokenizer->encode(input, {.special = special, .bos = settings.flag("bos")});
    print(settings, *tokenizer, ids, input);
  }
  return 0;
}

std::vector<Option> own_options() {
  const std::string group = "Input";
  return {
      {.name = "prompt",
       .group = group,
       .help = "the text; else stdin, byte for byte",
       .placeholder = "TEXT",
       .letter = 'p'},
      {.name = "decode",
       .type = OptionType::kFlag,
       .group = group,
       .help = "the input is a JSON list of ids; print their text"},
      {.name = "special",
       .type = OptionType::kFlag,
       .fallback = "true",
       .group = group,
       .help = "read control tokens in the text; --no-special: they stay text, and --decode leaves "
               "them out"},
      {.name = "bos",
       .type = OptionType::kFlag,
       .group = group,
       .help = "begin with the beginning-of-text token"},
  };
}

}  // namespace

Verb tokenize_verb() {
  return {
      .name = "tokenize",
      .summary = "turns text into token ids, and ids into text",
      .details =
          "Prints the ids as a JSON list, or with --decode the text, with nothing added. Only "
          "the tokenizer is opened, not the weights. --json: ids, pieces (as they stand in "
          "the vocabulary), text.",
      .examples = {"longspur tokenize -p 'Hello there'", "longspur tokenize < notes.txt",
                   "echo '[19556, 665]' | longspur tokenize --decode"},
      .options = verb_options(own_options(), {OptionGroup::kModel}),
      .run = run,
  };
}

}  // namespace longspur::app::cli

// `longspur perplexity`: exp of the mean negative log-likelihood of a text's tokens, over windows
// of
// --context tokens that do not overlap. The first token of each window is given, not predicted; a
// last window of one token predicts nothing and is left out. Sums are in double.
#include <algorithm>
#include <cmath>

#include "app/cli/console.h"
#include "app/cli/interrupt.h"
#include "app/cli/likelihood.h"
#include "app/cli/model.h"
#include "app/cli/option_table.h"
#include "app/cli/progress.h"
#include "app/cli/report.h"
#include "app/cli/verbs/verbs.h"
#include "base/error.h"

namespace longspur::app::cli {

namespace {

constexpr int64_t kDefaultContext = 2048;

struct Sum {
  double nll = 0;
  int64_t tokens = 0, windows = 0;

  double mean() const { return nll / double(tokens); }
};

// Adds the last `last` tokens of a window; 0: all but the first.
void add_window(engine::Engine& engine, std::span<const int32_t> window, int64_t last, Sum& sum) {
  const auto vocab = size_t(engine.config().vocab);
  const auto count = int64_t(window.size());
  const int64_t from = last > 0 ? std::max<int64_t>(0, count - last - 1) : 0;
  engine.logits(window, from, [&](int64_t first, int64_t rows, const float* logits) {
    check_interrupt();
    for (int64_t row = 0; row < rows; ++row) {
      const auto next = size_t(first + row + 1);
      if (next == window.size()) return;
      sum.nll += negative_log_likelihood({logits + size_t(row) * vocab, vocab}, window[next]);
      ++sum.tokens;
    }
  });
  ++sum.windows;
}

int64_t window_tokens(const Settings& settings, int64_t longest) {
  const int64_t context = settings.integer("context");
  if (context == 0) return std::min(kDefaultContext, longest);
  if (context < 2 || context > longest) {
    throw UsageError(
        concat("--context: found ", context, ", expected 2 to the context of ", longest));
  }
  return context;
}

Sum measure(engine::Engine& engine, std::span<const int32_t> ids, int64_t context, int64_t last) {
  Sum sum;
  Progress progress("perplexity");
  for (size_t begin = 0; begin + 1 < ids.size(); begin += size_t(context)) {
    add_window(engine, ids.subspan(begin, std::min(size_t(context), ids.size() - begin)), last,
               sum);
    progress.update(double(begin + size_t(context)), double(ids.size()),
                    concat(sum.windows, " windows, ", std::exp(sum.mean()), " so far"));
  }
  return sum;
}

int run(const Settings& settings) {
  const std::string& source = settings.required("text");
  const std::string text = read_file(source);
  engine::EngineOptions options = engine_options(settings);
  const int64_t context = window_tokens(settings, model_limits(options).context);
  options.max_context = context;  // the cache needs to hold one window
  const auto engine = load_engine(options);
  std::vector<int32_t> ids = engine->tokenizer().encode(text);
  const int64_t limit = settings.integer("max-tokens");
  if (limit > 0 && int64_t(ids.size()) > limit) ids.resize(size_t(limit));
  require(ids.size() >= 2, source, ": found ", ids.size(),
          " tokens, expected at least 2: one to predict from and one to predict");
  const Sum sum = measure(*engine, ids, context, settings.integer("last"));
  require(std::isfinite(sum.nll), source, ": found a log-likelihood that is not finite");
  if (settings.flag("json")) {
    write_json({{"perplexity", std::exp(sum.mean())},
                {"nll", sum.mean()},
                {"tokens", sum.tokens},
                {"windows", sum.windows},
                {"context", context},
                {"timing", timing_json(engine->stats())},
                {"memory", memory_json(engine->stats())},
                {"attention", attention_json(settings, engine->stats())}});
  } else {
    write_stdout(concat("perplexity ", std::exp(sum.mean()), " (", sum.tokens, " tokens in ",
                        sum.windows, " windows of ", context, ")\n"));
  }
  return 0;
}

std::vector<Option> own_options() {
  const std::string group = "Input";
  return {
      {.name = "text",
       .group = group,
       .help = "the text (- for stdin)",
       .placeholder = "FILE",
       .completes = Completes::kFile},
      {.name = "context",
       .type = OptionType::kInteger,
       .fallback = "0",
       .group = group,
       .help = "tokens a window; 0: 2048, or the model's context when that is less",
       .placeholder = "N",
       .letter = 'c',
       .low = 0},
      {.name = "last",
       .type = OptionType::kInteger,
       .fallback = "0",
       .group = group,
       .help = "score only the last N tokens of each window; 0: all",
       .placeholder = "N",
       .low = 0},
      {.name = "max-tokens",
       .type = OptionType::kInteger,
       .fallback = "0",
       .group = group,
       .help = "only the first N tokens of the text; 0: all",
       .placeholder = "N",
       .low = 0},
  };
}

}  // namespace

Verb perplexity_verb() {
  return {
      .name = "perplexity",
      .summary = "measures how well the model predicts a text",
      .details =
          "Windows do not overlap; the first token of each is given, not predicted, and no "
          "beginning-of-text token is added. --json: perplexity, nll (mean, in nats), tokens "
          "(predicted), windows, context, timing, memory, attention.",
      .examples = {"longspur perplexity --text book.txt --context 2048",
                   "longspur perplexity --text book.txt --max-tokens 8192 --compute fp32 --json"},
      .options = verb_options(own_options(), {OptionGroup::kModel, OptionGroup::kEngine}),
      .run = run,
  };
}

}  // namespace longspur::app::cli

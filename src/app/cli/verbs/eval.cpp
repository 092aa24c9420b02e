// `longspur eval`: can the model still use what stands far back? Scores by task, length and depth.
//
// Each answer is scored with the right tokens before it, in one pass over prompt and answer: a
// token counts when it is the most likely one, so that an exact answer is exactly what greedy
// decoding would have written.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "app/cli/console.h"
#include "app/cli/eval/tasks.h"
#include "app/cli/interrupt.h"
#include "app/cli/likelihood.h"
#include "app/cli/model.h"
#include "app/cli/number_list.h"
#include "app/cli/option_table.h"
#include "app/cli/progress.h"
#include "app/cli/report.h"
#include "app/cli/verbs/verbs.h"
#include "base/error.h"

namespace longspur::app::cli {

namespace {

using eval::Case;

struct Plan {
  engine::EngineOptions engine;
  std::string text;
  std::vector<eval::Task> tasks;
  std::vector<int64_t> lengths, depths;  // tokens; percent
  int64_t samples = 0;
  uint64_t seed = 0;
};

// Means over the samples of one cell.
struct Cell {
  Case what;
  double score = 0, exact = 0, nll = 0;
};

std::vector<eval::Task> parse_tasks(const std::string& text) {
  std::vector<eval::Task> tasks;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t comma = std::min(text.find(',', begin), text.size());
    const eval::Task task = eval::parse_task(text.substr(begin, comma - begin));
    if (std::find(tasks.begin(), tasks.end(), task) == tasks.end()) tasks.push_back(task);
    begin = comma + 1;
  }
  return tasks;
}

Plan make_plan(const Settings& settings) {
  Plan plan;
  plan.engine = engine_options(settings);
  plan.tasks = parse_tasks(settings.text("tasks"));
  plan.lengths = parse_number_list("--lengths", settings.text("lengths"), 1);
  plan.depths = parse_number_list("--depths", settings.text("depths"), 0);
  if (plan.depths.back() > 100)
    throw UsageError(concat("--depths: found ", plan.depths.back(), ", expected 0 to 100 percent"));
  plan.samples = settings.integer("samples");
  plan.seed = uint64_t(settings.integer("seed"));
  const int64_t context = model_limits(plan.engine).context;
  if (plan.lengths.back() > context && settings.given("lengths"))
    throw UsageError(concat("--lengths: found ", plan.lengths.back(),
                            ", expected at most the context of ", context));
  for (int64_t& length : plan.lengths) length = std::min(length, context);
  plan.lengths.erase(std::unique(plan.lengths.begin(), plan.lengths.end()), plan.lengths.end());
  if (settings.has("text")) {
    plan.text = read_file(settings.text("text"));
    require(!plan.text.empty(), settings.text("text"), ": found no text");
  }
  plan.engine.max_context = plan.lengths.back();  // all that the cache needs to hold
  return plan;
}

// Adds one sample to the sums of a cell.
void score(engine::Engine& engine, const eval::Sample& sample, Cell& cell) {
  const auto vocab = size_t(engine.config().vocab);
  const auto count = double(int64_t(sample.tokens.size()) - sample.answer);
  double right = 0, nll = 0;
  engine.logits(sample.tokens, sample.answer - 1,
                [&](int64_t first, int64_t rows, const float* logits) {
                  check_interrupt();
                  for (int64_t row = 0; row < rows; ++row) {
                    const auto next = size_t(first + row + 1);
                    if (next == sample.tokens.size()) return;
                    const std::span<const float> values(logits + size_t(row) * vocab, vocab);
                    const auto best = std::max_element(values.begin(), values.end());
                    right += best - values.begin() == sample.tokens[next] ? 1 : 0;
                    nll += negative_log_likelihood(values, sample.tokens[next]);
                  }
                });
  cell.score += right / count;
  cell.exact += right == count ? 1 : 0;
  cell.nll += nll / count;
}

std::vector<Cell> measure(engine::Engine& engine, const Plan& plan) {
  const auto encode = [&](const std::string& text) {
    return engine.tokenizer().encode(text, {.special = false});
  };
  std::vector<Cell> cells;
  const auto total =
      double(plan.tasks.size() * plan.lengths.size() * plan.depths.size()) * double(plan.samples);
  double done = 0;
  Progress progress("eval");
  for (const eval::Task task : plan.tasks) {
    for (const int64_t length : plan.lengths) {
      for (const int64_t depth : plan.depths) {
        Cell& cell = cells.emplace_back();
        cell.what = {task, length, double(depth) / 100, 0};
        for (int64_t i = 0; i < plan.samples; ++i) {
          cell.what.seed = plan.seed + uint64_t(i);
          score(engine, eval::make_sample(cell.what, plan.text, encode), cell);
          progress.update(++done, total, concat(task_name(task), " of ", length, " tokens"));
        }
        for (double* sum : {&cell.score, &cell.exact, &cell.nll}) *sum /= double(plan.samples);
      }
    }
  }
  return cells;
}

double mean_score(const std::vector<Cell>& cells) {
  double sum = 0;
  for (const Cell& cell : cells) sum += cell.score;
  return sum / double(cells.size());
}

Json cells_json(const std::vector<Cell>& cells) {
  Json rows = Json::array();
  for (const Cell& cell : cells) {
    rows.push_back({{"task", eval::task_name(cell.what.task)},
                    {"length", cell.what.length},
                    {"depth", cell.what.depth},
                    {"score", cell.score},
                    {"exact", cell.exact},
                    {"nll", cell.nll}});
  }
  return rows;
}

std::string table(const Plan& plan, const std::vector<Cell>& cells) {
  std::string text = "task        tokens  depth  score  exact     nll\n";
  for (const Cell& cell : cells) {
    char line[80];
    std::snprintf(line, sizeof line, "%-10s %7lld %5.0f%% %5.1f%% %5.1f%% %7.3f\n",
                  std::string(eval::task_name(cell.what.task)).c_str(),
                  static_cast<long long>(cell.what.length), 100 * cell.what.depth, 100 * cell.score,
                  100 * cell.exact, cell.nll);
    text += line;
  }
  return text + concat("mean score ", mean_score(cells), " (", cells.size(), " cells, ",
                       plan.samples, " samples each)\n");
}

int run(const Settings& settings) {
  const Plan plan = make_plan(settings);
  const auto engine = load_engine(plan.engine);
  const std::vector<Cell> cells = measure(*engine, plan);
  if (settings.flag("json")) {
    write_json({{"cells", cells_json(cells)},
                {"mean", mean_score(cells)},
                {"samples", plan.samples},
                {"attention", attention_json(settings, engine->stats())},
                {"memory", memory_json(engine->stats())}});
  } else {
    write_stdout(table(plan, cells));
  }
  return 0;
}

std::vector<Option> own_options() {
  const std::string group = "Tasks";
  return {
      {.name = "tasks",
       .fallback = "passkey,needle,quote",
       .group = group,
       .help = "what to find: passkey, needle, quote, with commas between them",
       .placeholder = "TASK,TASK",
       .positional = true},
      {.name = "lengths",
       .fallback = "1024,2048,4096,7500",
       .group = group,
       .help = "tokens of prompt and answer; the default shrinks to the model's context",
       .placeholder = "N,N"},
      {.name = "depths",
       .fallback = "0,25,50,75,100",
       .group = group,
       .help = "where it stands, in percent of the text",
       .placeholder = "P,P"},
      {.name = "samples",
       .type = OptionType::kInteger,
       .fallback = "1",
       .group = group,
       .help = "different keys and needles a cell",
       .placeholder = "N",
       .low = 1,
       .high = 10000},
      {.name = "seed",
       .type = OptionType::kInteger,
       .fallback = "0",
       .group = group,
       .help = "of the keys, needles and made-up text",
       .placeholder = "N",
       .low = 0},
      {.name = "text",
       .group = group,
       .help = "what needles are hidden in and passages quoted from; else made-up sentences",
       .placeholder = "FILE",
       .completes = Completes::kFile},
  };
}

}  // namespace

Verb eval_verb() {
  return {
      .name = "eval",
      .summary = "scores how well the model uses what stands far back in a long prompt",
      .details =
          "passkey: a number in filler; needle: a sentence that does not belong; quote: going on "
          "with a passage that stands in the text. The score of a cell is the share of the "
          "answer's tokens that are the most likely ones, given the right ones before; exact is "
          "the share of answers that are so throughout. --json: cells (task, length, depth, "
          "score, exact, nll), mean, samples, attention, memory.",
      .examples = {"longspur eval", "longspur eval passkey,quote --lengths 2048,7500 --samples 4",
                   "longspur eval --attention xattention --text book.txt --json"},
      .options = verb_options(own_options(), {OptionGroup::kModel, OptionGroup::kEngine}),
      .run = run,
  };
}

}  // namespace longspur::app::cli

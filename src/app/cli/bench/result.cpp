#include "app/cli/bench/result.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace longspur::app::cli::bench {

namespace {

using Json = nlohmann::ordered_json;

Json times_json(const Times& times) {
  const auto [fastest, slowest] = std::minmax_element(times.step_s.begin(), times.step_s.end());
  Json json = {{"runs", times.prefill_s.size()}, {"prefill_s", times.prefill_s}};
  if (!times.attention_s.empty()) json["prefill_attention_s"] = times.attention_s;
  json["decode_step_s"] = {{"steps", times.step_s.size()},
                           {"median", median(times.step_s)},
                           {"least", *fastest},
                           {"most", *slowest}};
  return json;
}

// Keys in the order of the table; those of the baseline only when there is one.
Json row_json(const Row& row, bool compared) {
  Json json = {{"context", row.context},
               {"batch", row.batch},
               {"prefill_tokens_per_s", row.prefill_rate()},
               {"decode_tokens_per_s", row.decode_rate()},
               {"prefill_attention_s", median(row.ours.attention_s)},
               {"density", row.density}};
  Json details = {{"longspur", times_json(row.ours)}};
  if (compared) {
    const bool has = row.has_baseline();
    const auto or_null = [&](double value) { return has ? Json(value) : Json(nullptr); };
    json["llama.cpp_prefill_tokens_per_s"] = or_null(row.baseline_prefill_rate());
    json["llama.cpp_decode_tokens_per_s"] = or_null(row.baseline_decode_rate());
    json["prefill_ratio"] = or_null(row.prefill_rate() / row.baseline_prefill_rate());
    json["decode_ratio"] = or_null(row.decode_rate() / row.baseline_decode_rate());
    if (has) {
      details["llama.cpp"] = {{"flash_attention_off", times_json(row.baseline[0])},
                              {"flash_attention_on", times_json(row.baseline[1])}};
      details["tokens_agreed"] = row.agreed;
      details["tokens_compared"] = row.compared;
    }
  }
  json["details"] = std::move(details);
  return json;
}

// Rate of a batch over that of one sequence after the same context.
std::vector<std::pair<int64_t, double>> batch_gains(const Result& result) {
  std::vector<std::pair<int64_t, double>> gains;
  for (const Row& row : result.rows)
    for (const Row& single : result.rows)
      if (row.batch > 1 && single.batch == 1 && single.context == row.context)
        gains.emplace_back(row.batch, row.decode_rate() / single.decode_rate());
  return gains;
}

std::string note(const Result& result) {
  std::string text;
  for (const auto& [batch, gain] : batch_gains(result))
    text += fmt::format("{} sequences decode {:.1f} times as many tokens/s as one; ", batch, gain);
  if (!result.start.first_token_s.empty())
    text += fmt::format("{:.2f} s from process start to the first token; ",
                        median(result.start.first_token_s));
  if (result.peak_rss_bytes > 0)
    text += fmt::format("peak memory {} MB at {} tokens of context; ",
                        result.peak_rss_bytes / 1'000'000, result.peak_context);
  return text.empty() ? text : text.substr(0, text.size() - 2);
}

std::string rate_text(double rate) { return fmt::format("{:.{}f}", rate, rate < 99.95 ? 1 : 0); }

}  // namespace

double median(std::vector<double> values) {
  LONGSPUR_ASSERT(!values.empty());
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : 0.5 * (values[middle - 1] + values[middle]);
}

void Times::add(double prefill, const std::vector<double>& steps) {
  prefill_s.push_back(prefill);
  step_s.insert(step_s.end(), steps.begin(), steps.end());
}

double Times::prefill_rate(int64_t tokens) const { return double(tokens) / median(prefill_s); }
double Times::decode_rate(int64_t sequences) const { return double(sequences) / median(step_s); }

double Row::baseline_prefill_rate() const {
  if (!has_baseline()) return std::numeric_limits<double>::quiet_NaN();
  return std::max(baseline[0].prefill_rate(context), baseline[1].prefill_rate(context));
}

double Row::baseline_decode_rate() const {
  if (!has_baseline()) return std::numeric_limits<double>::quiet_NaN();
  return std::max(baseline[0].decode_rate(1), baseline[1].decode_rate(1));
}

void Row::compare(const EngineRun& run, const BaselineRun& other) {
  const std::vector<int32_t>& tokens = run.tokens.front();
  for (size_t i = 0; i < other.best.size() && i < tokens.size(); ++i) {
    agreed += tokens[i] == other.best[i] ? 1 : 0;
    ++compared;
  }
}

double Result::top1_agreement() const {
  int64_t agreed = 0, compared = 0;
  for (const Row& row : rows) {
    agreed += row.agreed;
    compared += row.compared;
  }
  return compared > 0 ? double(agreed) / double(compared)
                      : std::numeric_limits<double>::quiet_NaN();
}

Json result_json(const Result& result) {
  const bool compared = !result.baseline.empty();
  Json rows = Json::array();
  for (const Row& row : result.rows) rows.push_back(row_json(row, compared));
  Json json = {{"model", result.model},
               {"device", result.device},
               {"threads", result.threads},
               {"attention", result.attention}};
  json["baseline"] = compared ? Json(result.baseline) : Json(nullptr);
  json["rows"] = std::move(rows);
  json["correctness"] = {{"batch_equals_single", result.batch_equals_single}};
  if (compared) json["correctness"]["top1_agreement"] = result.top1_agreement();
  json["start"] = nullptr;
  if (!result.start.first_token_s.empty())
    json["start"] = {{"first_token_s", median(result.start.first_token_s)},
                     {"prompt_tokens", result.start.prompt_tokens},
                     {"runs_s", result.start.first_token_s}};
  json["memory"] = {{"peak_rss_bytes", result.peak_rss_bytes},
                    {"context", result.peak_context},
                    {"file_bytes", result.file_bytes},
                    {"weights_bytes", result.weights_bytes},
                    {"kv_bytes", result.kv_bytes}};
  json["note"] = note(result);
  return json;
}

std::string result_text(const Result& result) {
  const bool compared = !result.baseline.empty();
  std::string out =
      fmt::format("{} on {}, {} threads", result.model, result.device, result.threads);
  if (compared) out += fmt::format("; baseline {}", result.baseline);
  out += fmt::format("\n{:>8} {:>6} {:>16} {:>15}", "context", "batch", "prefill tokens/s",
                     "decode tokens/s");
  if (compared)
    out += fmt::format(" {:>17} {:>16} {:>8} {:>8}", "llama.cpp prefill", "llama.cpp decode",
                       "prefill", "decode");
  out += "\n";
  for (const Row& row : result.rows) {
    out += fmt::format("{:>8} {:>6} {:>16} {:>15}", row.context, row.batch,
                       rate_text(row.prefill_rate()), rate_text(row.decode_rate()));
    if (row.has_baseline())
      out += fmt::format(
          " {:>17} {:>16} {:>7.2f}x {:>7.2f}x", rate_text(row.baseline_prefill_rate()),
          rate_text(row.baseline_decode_rate()), row.prefill_rate() / row.baseline_prefill_rate(),
          row.decode_rate() / row.baseline_decode_rate());
    out += "\n";
  }
  if (compared)
    out += fmt::format("{:.1f} % of our greedy tokens are the baseline's choice too\n",
                       100 * result.top1_agreement());
  const std::string facts = note(result);
  return facts.empty() ? out : out + facts + "\n";
}

}  // namespace longspur::app::cli::bench

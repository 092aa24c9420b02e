// What a bench found: rates by context and batch, beside the baseline's, and how it is shown.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/cli/bench/baseline.h"
#include "app/cli/bench/engine_run.h"

namespace longspur::app::cli::bench {

double median(std::vector<double> values);  // of at least one

// Seconds of several runs of the same work.
struct Times {
  std::vector<double> prefill_s;    // one a run
  std::vector<double> attention_s;  // of the prefills; empty: not known
  std::vector<double> step_s;       // of all runs

  void add(double prefill, const std::vector<double>& steps);
  bool empty() const { return prefill_s.empty(); }
  double prefill_rate(int64_t tokens) const;    // tokens/s, by the median run
  double decode_rate(int64_t sequences) const;  // by the median step
};

struct Row {
  int64_t context = 0, batch = 0;
  Times ours;
  std::array<Times, 2> baseline;     // without and with flash attention; empty: not compared
  double density = 1;                // share of key blocks that the prefills read
  int64_t agreed = 0, compared = 0;  // our greedy tokens that are the baseline's choice too

  bool has_baseline() const { return !baseline[0].empty(); }
  double prefill_rate() const { return ours.prefill_rate(context * batch); }
  double decode_rate() const { return ours.decode_rate(batch); }
  // Of its better setting.
  double baseline_prefill_rate() const;
  double baseline_decode_rate() const;

  void compare(const EngineRun& run, const BaselineRun& other);
};

struct Start {
  int64_t prompt_tokens = 0;
  std::vector<double> first_token_s;  // from the start of the process
};

struct Result {
  std::string model, device, attention, baseline;  // baseline: its title; empty: none
  int64_t threads = 0, file_bytes = 0, weights_bytes = 0;
  std::vector<Row> rows;
  Start start;
  // Most memory resident after the longest context of one sequence, and the cache it had.
  int64_t peak_rss_bytes = 0, peak_context = 0, kv_bytes = 0;
  bool batch_equals_single = true;  // tokens of a batch are those of the sequence alone

  double top1_agreement() const;  // NaN: nothing was compared
};

nlohmann::ordered_json result_json(const Result& result);
std::string result_text(const Result& result);

}  // namespace longspur::app::cli::bench

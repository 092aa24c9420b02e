// What host and device exchange for a draw: plain structs, laid out the same on both sides.
#pragma once

#include <cstdint>

namespace longspur::kernels::sampling::cuda {

// The most of `logprobs_k` that the device returns.
inline constexpr int32_t kMaxTop = 128;

struct Range {
  int32_t begin, end;
};

// One row's parameters. Ranges point into the arrays of the same blob.
struct Row {
  double presence, frequency;
  double top_p;         // 1: off
  double floor_offset;  // T log(min_p): lowest kept logit less the largest; -inf: off
  uint64_t draw;        // uniform in [0, 1) as a 64-bit fraction of 53 bits
  float scale;          // 1 / temperature
  float repetition;
  Range prompt, output, banned;  // of ids
  Range bias;                    // rising ids
  int32_t top_k;                 // 0: off
  int32_t greedy;
  int32_t edited;  // anything changes the logits before the temperature
  int32_t top;     // -1: no log-probabilities
};

struct Bias {
  double value;
  int32_t id;
  int32_t unused;
};

struct Entry {
  int32_t id;
  float logit;
};

enum class Outcome : int32_t { kDrawn, kNan, kInfinite, kAllBanned };

struct RowResult {
  Outcome outcome;
  int32_t token;
  float logit;  // of the token, as given
  int32_t top_count;
  double log_total;  // a log-probability is a logit less this; only when asked for
};

}  // namespace longspur::kernels::sampling::cuda

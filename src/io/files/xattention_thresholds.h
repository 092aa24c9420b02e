// Thresholds of XAttention for the heads of one model, as `longspur calibrate` writes them and
// --xattn-thresholds reads them:
//   {"format": "longspur-xattention-thresholds", "version": 1,
//    "model": {"name": "...", "layers": 30, "heads": 9, "kv_heads": 3, "head_dim": 64},
//    "estimator": "sampled:16", "block_size": 128, "rule": "share",
//    "target": {...}, "thresholds": [[0.9, ...], ...]}
// "thresholds" has a row for each layer with a number from 0 to 1 for each query head; 1 keeps a
// head dense. "rule" ("share" when absent, or "of_max") and "target" (what the thresholds were
// chosen for, any object) may be absent; unknown keys are errors.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/files/model_config.h"

namespace longspur::io {

struct XattentionThresholds {
  std::string model_name;
  int64_t layers = 0, heads = 0, kv_heads = 0, head_dim = 0;
  std::string estimator;  // not empty; spelled as kernels/xattn/estimator.h reads it
  int64_t block_size = 128;
  bool of_max = false;            // the rule
  std::string target = "{}";      // a JSON object
  std::vector<float> thresholds;  // [layers, heads]
};

// Throw Error that names the file, the key, what was found and what was expected.
XattentionThresholds read_xattention_thresholds(const std::string& path);
XattentionThresholds parse_xattention_thresholds(std::string_view text, const std::string& name);
std::string xattention_thresholds_json(const XattentionThresholds& table);

// Throws Error unless the table is for a model of this shape; `name` stands for the table.
void check_thresholds_fit(const XattentionThresholds& table,
                          const ModelConfig& config,
                          const std::string& name);

}  // namespace longspur::io

// A file of thresholds: read, and what was read is written and read again.
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "fuzz/read_tensors.h"
#include "io/files/xattention_thresholds.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace longspur;
  io::XattentionThresholds table;
  try {
    table = io::parse_xattention_thresholds({reinterpret_cast<const char*>(data), size}, "input");
  } catch (const Error&) {
    return 0;
  }
  fuzz::promise(int64_t(table.thresholds.size()) == table.layers * table.heads);
  for (const float threshold : table.thresholds) fuzz::promise(threshold >= 0 && threshold <= 1);
  const std::string text = io::xattention_thresholds_json(table);
  const io::XattentionThresholds again = io::parse_xattention_thresholds(text, "written");
  fuzz::promise(again.thresholds == table.thresholds && again.estimator == table.estimator &&
                again.target == table.target && again.model_name == table.model_name);
  return 0;
}

// For the tests: the reference and every instruction set of this machine as one list of paths.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/nvfp4/kernels.h"

namespace longspur::kernels::nvfp4 {

inline std::vector<std::string> paths() {
  std::vector<std::string> names = {"reference"};
  for (const std::string_view isa : available_isas()) names.emplace_back(isa);
  return names;
}

inline void quantize_on(const std::string& path,
                        const QuantizeArgs& args,
                        int64_t begin,
                        int64_t end) {
  if (path == "reference") return quantize_ref(args, begin, end);
  limit_isa(path);
  quantize(args, begin, end);
}

inline void dequantize_on(const std::string& path,
                          const DequantizeArgs& args,
                          int64_t begin,
                          int64_t end) {
  if (path == "reference") return dequantize_ref(args, begin, end);
  limit_isa(path);
  dequantize(args, begin, end);
}

// A quantised matrix and how it came about.
struct Quantized {
  std::vector<uint8_t> codes, scales;
  bool operator==(const Quantized&) const = default;
};

inline Quantized quantized(const std::string& path, QuantizeArgs args) {
  const int64_t rows = args.source.rows, k = args.source.k;
  // Bytes that nothing writes would differ from those of another path.
  static uint8_t filler = 0;
  ++filler;
  Quantized out{std::vector<uint8_t>(size_t(rows * k / 2), filler),
                std::vector<uint8_t>(size_t(rows * k / 16), filler)};
  args.codes = out.codes.data();
  args.scales = out.scales.data();
  quantize_on(path, args, 0, rows);
  return out;
}

inline void expect_same_on_all(const QuantizeArgs& args) {
  const Quantized expected = quantized("reference", args);
  for (const std::string& path : paths()) {
    const Quantized found = quantized(path, args);
    ASSERT_EQ(found.scales, expected.scales) << path;
    ASSERT_EQ(found.codes, expected.codes) << path;
    for (const uint8_t scale : found.scales) ASSERT_EQ(scale & 0x80, 0);
    for (const uint8_t byte : found.codes) ASSERT_TRUE((byte & 15) != 8 && byte >> 4 != 8);
  }
}

}  // namespace longspur::kernels::nvfp4

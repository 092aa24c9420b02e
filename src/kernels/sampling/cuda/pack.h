// Requests of a batch as one block of bytes for the device, and its results back. Plain C++: the
// checks and the random numbers are made here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/sampling/api.h"
#include "kernels/sampling/cuda/rows.h"

namespace longspur::kernels::sampling::cuda {

// rows, then bias, then ids, each at its offset.
struct Packed {
  std::vector<std::byte> bytes;
  std::size_t bias_offset = 0;
  std::size_t ids_offset = 0;
  std::vector<std::string> errors;  // of each request; not empty: its row draws something harmless
};

// True when the device can serve these requests (it returns at most kMaxTop log-probabilities).
bool accepts(std::span<const SampleArgs> requests);

// Parameters and ids that sample() refuses are errors of their own request.
void pack(std::span<const SampleArgs> requests, Packed& packed);

// `result` of a row that was drawn (log-probabilities when `asked`); else what was wrong with it.
std::string unpack(const RowResult& row,
                   std::span<const Entry> top,
                   bool asked,
                   SampleResult& result);

}  // namespace longspur::kernels::sampling::cuda

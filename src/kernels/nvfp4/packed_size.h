// Sizes of the packed form of weights that the CUDA products read (cuda/packed.cuh), for code that
// plans memory without a device.
#pragma once

#include <cstdint>

namespace longspur::kernels::nvfp4 {

inline constexpr int kPackedRows = 128, kPackedColumns = 128;  // both padded to these
inline constexpr int kPackedGroupBytes = kPackedRows * kPackedColumns / 16 * 9;  // 4.5 bits each

constexpr int64_t packed_bytes(int64_t n, int64_t k) {
  return (n + kPackedRows - 1) / kPackedRows * ((k + kPackedColumns - 1) / kPackedColumns) *
         kPackedGroupBytes;
}

}  // namespace longspur::kernels::nvfp4

// A packed weight as matmul sees it; pack() makes it.
#pragma once

#include "kernels/qgemm/api.h"
#include "kernels/qgemm/params.h"

namespace longspur::kernels::qgemm {

class PackedRows final : public PackedWeight {
 public:
  PackedRows(DType dtype, int64_t n, int64_t k);

  DType dtype() const override { return dtype_; }
  int64_t n() const override { return n_; }
  int64_t k() const override { return k_; }
  int64_t bytes() const override { return bytes_; }
  void dequantize_row(int64_t row, float* out) const override;

  WeightKind kind() const { return kind_; }
  int64_t group_bytes() const { return group_bytes_; }
  const std::byte* data() const { return data_.get(); }
  std::byte* data() { return data_.get(); }
  // Of NVFP4: what multiplies each row, [groups, 16]; else null.
  const float* row_scale() const;
  float* row_scale();

 private:
  void dequantize_nvfp4(int64_t row, float* out) const;

  DType dtype_;
  WeightKind kind_;
  int64_t n_, k_;
  int64_t group_bytes_;
  int64_t bytes_;                    // all groups, then the rows' scales
  std::shared_ptr<std::byte> data_;  // part of a chunk that other weights share
};

WeightKind kind_of(DType dtype);  // throws UnsupportedError for other types

}  // namespace longspur::kernels::qgemm

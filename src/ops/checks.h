// Checks that all operations share. Each throws Error with one line: operation, argument, what was
// found and what was expected. Only cu_seqlens_on_host reads a tensor's values.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace longspur::ops {

std::string shown_size(const c10::SymInt& size);
std::string shown_shape(const at::Tensor& tensor);   // "[3, 4]"
std::string_view shown_dtype(at::ScalarType dtype);  // "float32", as Python shows it

void check_dim(std::string_view op,
               std::string_view name,
               const at::Tensor& tensor,
               int64_t dim,
               std::string_view form);  // "[T, H, D]"
void check_shape(std::string_view op,
                 std::string_view name,
                 const at::Tensor& tensor,
                 c10::SymIntArrayRef shape,
                 std::string_view meaning);  // "k's shape"
void check_dtype(std::string_view op,
                 std::string_view name,
                 const at::Tensor& tensor,
                 at::ScalarType dtype);
// float32, bfloat16, float16 or float64
void check_floating(std::string_view op, std::string_view name, const at::Tensor& tensor);
// same dtype and device
void check_like(std::string_view op,
                std::string_view name,
                const at::Tensor& tensor,
                std::string_view other_name,
                const at::Tensor& other);
void check_device(std::string_view op,
                  std::string_view name,
                  const at::Tensor& tensor,
                  std::string_view other_name,
                  const at::Tensor& other);
void check_at_least(std::string_view op, std::string_view name, int64_t value, int64_t least);

// int32 [B + 1], on the CPU or on data's device.
void check_cu_seqlens_form(std::string_view op,
                           std::string_view name,
                           const at::Tensor& cu_seqlens,
                           const at::Tensor& data);

// A contiguous copy on the CPU (or the tensor itself), after checking its values: from 0 to `rows`
// (where it is known), never falling, no length above max_seqlen.
at::Tensor cu_seqlens_on_host(std::string_view op,
                              std::string_view name,
                              const at::Tensor& cu_seqlens,
                              std::optional<int64_t> rows,
                              int64_t max_seqlen);

// The tensor itself when its rows are contiguous along the last dimension, else a copy.
at::Tensor with_contiguous_rows(const at::Tensor& tensor);

}  // namespace longspur::ops

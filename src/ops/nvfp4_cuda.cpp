// NVFP4 on CUDA: torch tensors to the launchers of kernels/nvfp4/cuda. Only in builds that have
// them.
#include <ATen/ops/empty.h>

#include <array>

#include "kernels/nvfp4/cuda/quantize.h"
#include "ops/device_stream.h"
#include "ops/dtype.h"
#include "ops/nvfp4_impl.h"

namespace longspur::ops {

namespace {

namespace device = kernels::nvfp4::cuda;

bool quantize_accepts(const Nvfp4QuantizeProblem& problem) { return problem.x.is_cuda(); }
bool dequantize_accepts(const Nvfp4DequantizeProblem& problem) { return problem.codes.is_cuda(); }

void quantize(const Nvfp4QuantizeProblem& problem) {
  const std::string_view op = "nvfp4_quantize";
  device::Quantize args;
  args.source = {problem.x.const_data_ptr(), dtype_of(problem.x), problem.rows, problem.k,
                 problem.x.stride(0),        problem.transposed};
  args.recipe = problem.recipe;
  args.amax_from = problem.amax.defined() ? device::Amax::kGiven
                   : problem.per_row      ? device::Amax::kRow
                                          : device::Amax::kTensor;
  if (problem.amax.defined()) args.amax = problem.amax.const_data_ptr<float>();
  args.amax_per_row = problem.per_row;
  if (problem.importance.defined()) args.importance = problem.importance.const_data_ptr<float>();
  args.out.codes = problem.codes.mutable_data_ptr<uint8_t>();
  args.out.scales = problem.scales.mutable_data_ptr<uint8_t>();
  args.out.multiplier = problem.tensor_scale.mutable_data_ptr<float>();
  const c10::Stream stream = device_stream(op, problem.x);
  const at::Tensor workspace =
      at::empty({device::workspace_bytes(args)}, problem.codes.options().dtype(at::kByte));
  check_launch(op, device::quantize(args, workspace.mutable_data_ptr(), stream.native_handle()));
}

void dequantize(const Nvfp4DequantizeProblem& problem) {
  const std::string_view op = "nvfp4_dequantize";
  kernels::nvfp4::DequantizeArgs args;
  args.codes = problem.codes.const_data_ptr<uint8_t>();
  args.scales = problem.scales.const_data_ptr<uint8_t>();
  args.multiplier = problem.tensor_scale.const_data_ptr<float>();
  args.multiplier_per_row = problem.tensor_scale.numel() > 1;
  args.rows = problem.rows;
  args.k = problem.k;
  args.dtype = dtype_of(problem.out);
  args.out = problem.out.mutable_data_ptr();
  const c10::Stream stream = device_stream(op, problem.codes);
  check_launch(op, device::dequantize(args, false, stream.native_handle()));
}

constexpr Nvfp4Implementation kNvfp4Cuda = {"cuda", quantize_accepts, quantize, dequantize_accepts,
                                            dequantize};

}  // namespace

std::span<const Nvfp4Implementation* const> nvfp4_device_implementations() {
  static constexpr std::array kAll = {&kNvfp4Cuda};
  return kAll;
}

}  // namespace longspur::ops

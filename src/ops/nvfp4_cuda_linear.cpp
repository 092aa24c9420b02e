// Linear layers with NVFP4 weights on CUDA: torch tensors to the products of kernels/nvfp4/cuda.
// Not taken: fp32 activations that are not quantised, whose products the tensor cores cannot do.
#include <ATen/ops/empty.h>

#include <array>
#include <string_view>

#include "base/error.h"
#include "kernels/nvfp4/cuda/matmul.h"
#include "ops/device_stream.h"
#include "ops/dtype.h"
#include "ops/nvfp4_impl.h"
#include "ops/nvfp4_packed.h"

namespace longspur::ops {

namespace {

namespace device = kernels::nvfp4::cuda;

constexpr std::string_view kOp = "nvfp4_linear";

device::Type type_of(const at::Tensor& tensor) {
  switch (dtype_of(tensor)) {
    case DType::kBF16:
      return device::Type::kBF16;
    case DType::kF16:
      return device::Type::kF16;
    case DType::kF32:
      return device::Type::kF32;
    default:
      throw InternalError(concat(kOp, ": dtype ", c10::toString(tensor.scalar_type())));
  }
}

// The kernels read 16 bytes at a time.
at::Tensor aligned(const at::Tensor& tensor) {
  const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  return address % 16 == 0 ? tensor : tensor.clone();
}

// packed: undefined where there is none.
device::MatmulArgs make_args(const Nvfp4LinearProblem& problem, const at::Tensor& packed) {
  device::MatmulArgs args;
  args.w.codes = problem.codes.const_data_ptr<uint8_t>();
  args.w.scales = problem.scales.const_data_ptr<uint8_t>();
  if (packed.defined()) args.w.packed = packed.const_data_ptr();
  args.w.multiplier = problem.tensor_scale.const_data_ptr<float>();
  args.w.multiplier_per_row = problem.tensor_scale.numel() > 1;
  args.w.n = problem.codes.size(0);
  args.w.k = problem.codes.size(1) * 2;
  args.m = problem.x.size(0);
  if (problem.x_codes.defined()) {
    args.x_codes = problem.x_codes.const_data_ptr<uint8_t>();
    args.x_scales = problem.x_scales.const_data_ptr<uint8_t>();
    args.x_multiplier = problem.x_tensor_scale.const_data_ptr<float>();
    args.x_multiplier_per_row = problem.x_tensor_scale.numel() > 1;
  } else {
    args.x = problem.x.const_data_ptr();
    args.x_type = type_of(problem.x);
  }
  args.y = problem.out.mutable_data_ptr();
  args.y_type = type_of(problem.out);
  return args;
}

bool run(const Nvfp4LinearProblem& given) {
  const bool quantised = given.x_codes.defined();
  if (!given.x.is_cuda() || (!quantised && given.x.scalar_type() == at::kFloat)) return false;
  Nvfp4LinearProblem problem = given;
  problem.x = aligned(given.x);
  problem.codes = aligned(given.codes);
  const at::Tensor packed =
      PackedWeights::instance().find_or_pack(given.given_codes, given.given_scales);
  device::MatmulArgs args = make_args(problem, packed);
  // the kernel for anything is slower than decoding all of W and torch's product
  if (std::string_view(device::matmul_choice(args)) == "simple") return false;
  at::Tensor bias, workspace;
  if (problem.bias.defined()) {
    bias = problem.bias.to(at::kFloat);
    args.bias = bias.const_data_ptr<float>();
  }
  const c10::Stream stream = device_stream(kOp, problem.x);
  if (const int64_t bytes = device::matmul_workspace_bytes(args); bytes > 0) {
    workspace = at::empty({bytes}, problem.codes.options());
    args.workspace = workspace.mutable_data_ptr();
  }
  check_launch(kOp, device::matmul(args, stream.native_handle()));
  return true;
}

constexpr Nvfp4LinearImplementation kNvfp4LinearCuda = {"cuda", run};

}  // namespace

std::span<const Nvfp4LinearImplementation* const> nvfp4_device_linear_implementations() {
  static constexpr std::array kAll = {&kNvfp4LinearCuda};
  return kAll;
}

}  // namespace longspur::ops

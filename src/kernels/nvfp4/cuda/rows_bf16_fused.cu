// Rows of bf16 quantised after RMSNorm or SwiGLU, as if the result had been stored in bf16 between.
#include "kernels/nvfp4/cuda/rows_bf16_kernel.cuh"

namespace longspur::kernels::nvfp4::cuda {

namespace {

template <Input kInput, Rule kRule>
void launch(const RowParams& params, cudaStream_t stream) {
  const int64_t halves = (params.columns + kPerThread - 1) / kPerThread;
  const auto threads = unsigned((halves + kWarp - 1) / kWarp * kWarp);
  rows_bf16_kernel<kInput, kRule, Metric::kMse, kMaxThreads, 2>
      <<<unsigned(params.rows), threads, 0, stream>>>(params, false, kMagnitudes);
}

template <Input kInput>
void launch_rule(const RowParams& params, cudaStream_t stream) {
  if (params.rules.rule == Rule::kFourOverSix)
    launch<kInput, Rule::kFourOverSix>(params, stream);
  else if (params.rules.rule == Rule::kSweep)
    launch<kInput, Rule::kSweep>(params, stream);
  else
    launch<kInput, Rule::kStatic6>(params, stream);
}

}  // namespace

bool accepts_bf16_fused(const RowParams& params) {
  const bool scored = params.rules.rule == Rule::kFourOverSix || params.rules.rule == Rule::kSweep;
  return accepts_bf16(params) && !(scored && params.rules.metric != Metric::kMse) &&
         reinterpret_cast<uintptr_t>(params.weight) % 16 == 0;
}

void launch_rows_bf16_fused(const RowParams& params, Input input, cudaStream_t stream) {
  launch_padding(params, stream);
  if (input == Input::kNorm)
    launch_rule<Input::kNorm>(params, stream);
  else
    launch_rule<Input::kSwiGlu>(params, stream);
}

}  // namespace longspur::kernels::nvfp4::cuda

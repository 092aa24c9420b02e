#include "ops/nvfp4_autograd.h"

namespace longspur::ops {

namespace {

struct DirectCalls {
  template <class... Args>
  static at::Tensor fake_quantize(const Args&... args) {
    return nvfp4_fake_quantize_forward(args...);
  }
  static constexpr auto linear = nvfp4_linear_forward;
  static constexpr auto linear_backward = nvfp4_linear_backward;
  static constexpr auto linear_qat = nvfp4_linear_qat_forward;
  static constexpr auto linear_qat_backward = nvfp4_linear_qat_backward;
};

}  // namespace

at::Tensor nvfp4_fake_quantize(const at::Tensor& x,
                               const std::optional<at::Tensor>& amax,
                               std::string_view rule,
                               std::string_view metric,
                               bool tile_2d,
                               std::string_view rounding,
                               int64_t seed,
                               bool per_row,
                               int64_t scale_bound,
                               const std::optional<at::Tensor>& importance) {
  return Nvfp4FakeQuantizeFunction<DirectCalls>::apply(x, amax, rule, metric, tile_2d, rounding,
                                                       seed, per_row, scale_bound, importance);
}

at::Tensor nvfp4_linear(const at::Tensor& x,
                        const at::Tensor& codes,
                        const at::Tensor& block_scales,
                        const at::Tensor& tensor_scale,
                        const std::optional<at::Tensor>& bias,
                        std::optional<std::string_view> activations,
                        std::string_view activation_metric) {
  return Nvfp4LinearFunction<DirectCalls>::apply(x, codes, block_scales, tensor_scale, bias,
                                                 activations, activation_metric);
}

at::Tensor nvfp4_linear_qat(const at::Tensor& x,
                            const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias,
                            const Nvfp4QatOptions& options) {
  return Nvfp4QatFunction<DirectCalls>::apply(x, weight, bias, options);
}

}  // namespace longspur::ops

// The gradient rules of NVFP4's operations, once for both ways to reach the computation: Calls has
// the static functions that each rule names. C++ callers use the functions of nvfp4.h, bindings/
// goes through torch's dispatcher, so that tracing sees both. Heavy: include it where the rules are
// instantiated, nowhere else.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/sum.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "ops/nvfp4.h"

namespace longspur::ops {

// Rounding is a step; its gradient is taken as that of no rounding at all.
template <class Calls>
class Nvfp4FakeQuantizeFunction
    : public torch::autograd::Function<Nvfp4FakeQuantizeFunction<Calls>> {
  using Context = torch::autograd::AutogradContext;
  using Variables = torch::autograd::variable_list;

 public:
  template <class... Options>
  static at::Tensor forward(Context* context, const at::Tensor& x, const Options&... options) {
    const at::AutoDispatchBelowADInplaceOrView below;
    context->saved_data["inputs"] = int64_t{1 + sizeof...(Options)};
    return Calls::fake_quantize(x, options...);
  }
  static Variables backward(Context* context, const Variables& gradients) {
    Variables result = {gradients[0]};
    result.resize(static_cast<size_t>(context->saved_data["inputs"].toInt()));
    return result;
  }
};

// The gradient of a bias [N] is the sum of grad [..., N] over all rows.
inline at::Tensor nvfp4_bias_gradient(const at::Tensor& grad, at::ScalarType dtype) {
  return grad.reshape_symint({-1, grad.sym_size(-1)}).sum(0, false, at::kFloat).to(dtype);
}

// The dtype of a bias, -1 where there is none.
inline int64_t nvfp4_bias_type(const std::optional<at::Tensor>& bias) {
  return bias ? static_cast<int64_t>(bias->scalar_type()) : -1;
}

// As Nvfp4QatBackwardFunction below.
template <class Calls>
class Nvfp4LinearBackwardFunction
    : public torch::autograd::Function<Nvfp4LinearBackwardFunction<Calls>> {
  using Context = torch::autograd::AutogradContext;
  using Variables = torch::autograd::variable_list;

 public:
  static at::Tensor forward(Context*,
                            const at::Tensor& grad,
                            const at::Tensor& codes,
                            const at::Tensor& block_scales,
                            const at::Tensor& tensor_scale) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return Calls::linear_backward(grad, codes, block_scales, tensor_scale);
  }
  static Variables backward(Context*, const Variables&) {
    throw UnsupportedError("nvfp4_linear: found a second derivative, expected first ones only");
  }
};

template <class Calls>
class Nvfp4LinearFunction : public torch::autograd::Function<Nvfp4LinearFunction<Calls>> {
  using Context = torch::autograd::AutogradContext;
  using Variables = torch::autograd::variable_list;

 public:
  static at::Tensor forward(Context* context,
                            const at::Tensor& x,
                            const at::Tensor& codes,
                            const at::Tensor& block_scales,
                            const at::Tensor& tensor_scale,
                            const std::optional<at::Tensor>& bias,
                            std::optional<std::string_view> activations,
                            std::string_view activation_metric) {
    const at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({codes, block_scales, tensor_scale});
    context->saved_data["bias"] = nvfp4_bias_type(bias);
    return Calls::linear(x, codes, block_scales, tensor_scale, bias, activations,
                         activation_metric);
  }

  static Variables backward(Context* context, const Variables& gradients) {
    const Variables s = context->get_saved_variables();
    const int64_t bias_type = context->saved_data["bias"].toInt();
    Variables result(7);
    if (context->needs_input_grad(0))
      result[0] = Nvfp4LinearBackwardFunction<Calls>::apply(gradients[0], s[0], s[1], s[2]);
    if (bias_type >= 0 && context->needs_input_grad(4))
      result[4] = nvfp4_bias_gradient(gradients[0], static_cast<at::ScalarType>(bias_type));
    return result;
  }
};

// Options kept from the forward to the backward; the restored ones refer to the kept strings.
inline void save_qat_options(ska::flat_hash_map<std::string, at::IValue>& saved,
                             const Nvfp4QatOptions& options) {
  const auto owned = [](std::optional<std::string_view> rule) {
    return rule ? at::IValue(std::string(*rule)) : at::IValue();
  };
  saved["activation_rule"] = owned(options.activation_rule);
  saved["weight_rule"] = owned(options.weight_rule);
  saved["gradient_rule"] = owned(options.gradient_rule);
  saved["metric"] = owned(options.metric);
  saved["tile_2d"] = options.tile_2d;
  saved["gradient_rounding"] = owned(options.gradient_rounding);
  saved["quantize_dgrad"] = options.quantize_dgrad;
  saved["quantize_wgrad"] = options.quantize_wgrad;
  saved["hadamard"] = options.hadamard;
  saved["per_row"] = options.per_row;
  saved["seed"] = options.seed;
}

inline Nvfp4QatOptions restored_qat_options(ska::flat_hash_map<std::string, at::IValue>& saved) {
  const auto rule = [&](const char* name) {
    const at::IValue& value = saved[name];
    return value.isNone() ? std::nullopt : std::optional<std::string_view>(value.toStringView());
  };
  Nvfp4QatOptions options;
  options.activation_rule = rule("activation_rule");
  options.weight_rule = rule("weight_rule");
  options.gradient_rule = rule("gradient_rule");
  options.metric = saved["metric"].toStringView();
  options.tile_2d = saved["tile_2d"].toBool();
  options.gradient_rounding = saved["gradient_rounding"].toStringView();
  options.quantize_dgrad = saved["quantize_dgrad"].toBool();
  options.quantize_wgrad = saved["quantize_wgrad"].toBool();
  options.hadamard = saved["hadamard"].toBool();
  options.per_row = saved["per_row"].toBool();
  options.seed = saved["seed"].toInt();
  return options;
}

// Refuses a second derivative, which would otherwise silently be zero.
template <class Calls>
class Nvfp4QatBackwardFunction : public torch::autograd::Function<Nvfp4QatBackwardFunction<Calls>> {
  using Context = torch::autograd::AutogradContext;
  using Variables = torch::autograd::variable_list;

 public:
  static Variables forward(Context*,
                           const at::Tensor& grad,
                           const at::Tensor& x,
                           const at::Tensor& weight,
                           const Nvfp4QatOptions& options) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [dx, dw] = Calls::linear_qat_backward(grad, x, weight, options);
    return {dx, dw};
  }
  static Variables backward(Context*, const Variables&) {
    throw UnsupportedError("nvfp4_linear_qat: found a second derivative, expected first ones only");
  }
};

template <class Calls>
class Nvfp4QatFunction : public torch::autograd::Function<Nvfp4QatFunction<Calls>> {
  using Context = torch::autograd::AutogradContext;
  using Variables = torch::autograd::variable_list;

 public:
  static at::Tensor forward(Context* context,
                            const at::Tensor& x,
                            const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias,
                            const Nvfp4QatOptions& options) {
    const at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({x, weight});
    context->saved_data["bias"] = nvfp4_bias_type(bias);
    save_qat_options(context->saved_data, options);
    return Calls::linear_qat(x, weight, bias, options);
  }

  static Variables backward(Context* context, const Variables& gradients) {
    const Variables s = context->get_saved_variables();
    const int64_t bias_type = context->saved_data["bias"].toInt();
    Variables result(4);
    const Variables products = Nvfp4QatBackwardFunction<Calls>::apply(
        gradients[0], s[0], s[1], restored_qat_options(context->saved_data));
    result[0] = products[0];
    result[1] = products[1];
    if (bias_type >= 0 && context->needs_input_grad(2))
      result[2] = nvfp4_bias_gradient(gradients[0], static_cast<at::ScalarType>(bias_type));
    return result;
  }
};

}  // namespace longspur::ops

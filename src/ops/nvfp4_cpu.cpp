// NVFP4 on the CPU: torch tensors to the pointers of kernels/nvfp4, rows on torch's threads.
#include <algorithm>

#include "kernels/nvfp4/api.h"
#include "ops/nvfp4_impl.h"
#include "ops/parallel.h"

namespace longspur::ops {

namespace {

namespace kernel = kernels::nvfp4;

// Rows of one item: whole tiles of 16, some ten thousand elements.
int64_t item_rows(int64_t k) { return std::max<int64_t>(1, (int64_t{1} << 15) / (16 * k)) * 16; }

// Calls f(begin, end) for all rows, in items on any thread.
template <class F>
void for_each_rows(int64_t rows, int64_t k, const F& f) {
  const int64_t step = item_rows(k);
  for_each_item((rows + step - 1) / step, 0, [&](int64_t item, std::byte*) {
    f(item * step, std::min(rows, (item + 1) * step));
  });
}

bool quantize_accepts(const Nvfp4QuantizeProblem& problem) { return problem.x.device().is_cpu(); }
bool dequantize_accepts(const Nvfp4DequantizeProblem& problem) {
  return problem.codes.device().is_cpu();
}

void quantize(const Nvfp4QuantizeProblem& problem) {
  kernel::QuantizeArgs args;
  args.source = {problem.x.const_data_ptr(), nvfp4_dtype(problem.x), problem.rows, problem.k,
                 problem.x.stride(0),        problem.transposed};
  args.amax_per_row = problem.per_row;
  args.importance =
      problem.importance.defined() ? problem.importance.const_data_ptr<float>() : nullptr;
  args.recipe = problem.recipe;
  args.codes = problem.codes.mutable_data_ptr<uint8_t>();
  args.scales = problem.scales.mutable_data_ptr<uint8_t>();

  const at::Tensor amax = problem.amax.defined() ? problem.amax : nvfp4_amax(problem);
  args.amax = amax.const_data_ptr<float>();
  for_each_rows(problem.rows, problem.k,
                [&](int64_t begin, int64_t end) { kernel::quantize_ref(args, begin, end); });
  float* const tensor_scale = problem.tensor_scale.mutable_data_ptr<float>();
  for (int64_t i = 0; i < amax.numel(); ++i)
    tensor_scale[i] = kernel::tensor_scale(args.amax[i], args.recipe);
}

void dequantize(const Nvfp4DequantizeProblem& problem) {
  kernel::DequantizeArgs args;
  args.codes = problem.codes.const_data_ptr<uint8_t>();
  args.scales = problem.scales.const_data_ptr<uint8_t>();
  args.multiplier = problem.tensor_scale.const_data_ptr<float>();
  args.multiplier_per_row = problem.tensor_scale.numel() > 1;
  args.rows = problem.rows;
  args.k = problem.k;
  args.dtype = nvfp4_dtype(problem.out);
  args.out = problem.out.mutable_data_ptr();
  for_each_rows(problem.rows, problem.k,
                [&](int64_t begin, int64_t end) { kernel::dequantize_ref(args, begin, end); });
}

}  // namespace

const Nvfp4Implementation kNvfp4Cpu = {"cpu", quantize_accepts, quantize, dequantize_accepts,
                                       dequantize};

}  // namespace longspur::ops

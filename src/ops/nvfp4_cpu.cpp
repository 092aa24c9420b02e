// NVFP4 on the CPU: torch tensors to the pointers of kernels/nvfp4, rows on torch's threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/nvfp4/api.h"
#include "ops/dtype.h"
#include "ops/nvfp4_impl.h"
#include "ops/parallel.h"

namespace longspur::ops {

namespace {

namespace kernel = kernels::nvfp4;

// Rows of one item: whole tiles of 16, some ten thousand elements, so that what the search for the
// largest magnitude reads is still in the cache when it is quantised.
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

// The largest magnitude of all rows; NaN if there is one that is not finite.
float tensor_amax(const kernel::Source& source, bool hadamard) {
  const int64_t step = item_rows(source.k);
  std::vector<float> parts(static_cast<size_t>((source.rows + step - 1) / step));
  for_each_rows(source.rows, source.k, [&](int64_t begin, int64_t end) {
    parts[static_cast<size_t>(begin / step)] =
        kernel::max_magnitude(source, hadamard, begin, end, nullptr);
  });
  float amax = 0;
  for (const float part : parts) {
    if (std::isnan(part)) return part;
    amax = std::max(amax, part);
  }
  return amax;
}

void quantize(const Nvfp4QuantizeProblem& problem) {
  kernel::QuantizeArgs args;
  args.source = {problem.x.const_data_ptr(), dtype_of(problem.x), problem.rows, problem.k,
                 problem.x.stride(0),        problem.transposed};
  args.amax_per_row = problem.per_row;
  args.importance =
      problem.importance.defined() ? problem.importance.const_data_ptr<float>() : nullptr;
  args.recipe = problem.recipe;
  args.codes = problem.codes.mutable_data_ptr<uint8_t>();
  args.scales = problem.scales.mutable_data_ptr<uint8_t>();

  float* const tensor_scale = problem.tensor_scale.mutable_data_ptr<float>();
  std::vector<float> amax(static_cast<size_t>(problem.per_row ? problem.rows : 1));
  const bool given = problem.amax.defined();
  if (given) {
    const float* from = problem.amax.const_data_ptr<float>();
    std::copy(from, from + amax.size(), amax.begin());
  } else if (!problem.per_row) {
    amax[0] = tensor_amax(args.source, args.recipe.hadamard);
  }
  args.amax = amax.data();
  for_each_rows(problem.rows, problem.k, [&](int64_t begin, int64_t end) {
    if (!given && problem.per_row)
      kernel::max_magnitude(args.source, args.recipe.hadamard, begin, end, amax.data() + begin);
    kernel::quantize(args, begin, end);
  });
  for (size_t i = 0; i < amax.size(); ++i)
    tensor_scale[i] = kernel::tensor_scale(amax[i], args.recipe);
}

void dequantize(const Nvfp4DequantizeProblem& problem) {
  kernel::DequantizeArgs args;
  args.codes = problem.codes.const_data_ptr<uint8_t>();
  args.scales = problem.scales.const_data_ptr<uint8_t>();
  args.multiplier = problem.tensor_scale.const_data_ptr<float>();
  args.multiplier_per_row = problem.tensor_scale.numel() > 1;
  args.rows = problem.rows;
  args.k = problem.k;
  args.dtype = dtype_of(problem.out);
  args.out = problem.out.mutable_data_ptr();
  for_each_rows(problem.rows, problem.k,
                [&](int64_t begin, int64_t end) { kernel::dequantize(args, begin, end); });
}

}  // namespace

const Nvfp4Implementation kNvfp4Cpu = {"cpu", quantize_accepts, quantize, dequantize_accepts,
                                       dequantize};

}  // namespace longspur::ops

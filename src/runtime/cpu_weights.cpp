#include "runtime/cpu_weights.h"

#include "base/error.h"
#include "models/decoder_loading.h"

namespace longspur::runtime {

namespace qgemm = kernels::qgemm;
using models::TensorSource;

DType cpu_weight_type(const TensorSource& source, bool fp32) {
  if (fp32) return DType::kF32;
  const DType stored = source.dtype();
  const bool keeps_scale = stored == DType::kNVFP4 || source.scale == 1.0f;
  return keeps_scale && qgemm::supports(stored, source.k()) ? stored : DType::kBF16;
}

namespace {

class Loader {
 public:
  Loader(bool fp32, ThreadPool& pool, const std::function<void(int64_t)>& progress)
      : fp32_(fp32), pool_(pool), progress_(progress) {}

  // Stacks matrices along N; neighbours of one type share a packed matrix.
  CpuLinear linear(const std::vector<TensorSource>& sources,
                   const std::vector<TensorSource>& biases) {
    CpuLinear result;
    result.k = sources[0].k();
    for (size_t begin = 0; begin < sources.size();) {
      const DType type = cpu_weight_type(sources[begin], fp32_);
      size_t end = begin + 1;
      while (end < sources.size() && cpu_weight_type(sources[end], fp32_) == type) ++end;
      std::vector<models::Rows> rows;
      std::vector<qgemm::WeightRows> parts;
      for (size_t i = begin; i < end; ++i) rows.push_back(models::read_rows(sources[i], type));
      for (const models::Rows& r : rows) parts.push_back({r.dtype, r.data, r.n, r.k, r.scale});
      result.parts.push_back(qgemm::pack(parts, pool_));
      result.n += result.parts.back()->n();
      for (size_t i = begin; i < end; ++i) report(sources[i]);
      begin = end;
    }
    add_bias(result, sources, biases);
    return result;
  }

  CpuVector vector(const TensorSource& source) {
    if (source) report(source);
    return models::read_vector(source);
  }

 private:
  // A stacked product has a bias when any of its parts has one; the others get zeros.
  static void add_bias(CpuLinear& result,
                       const std::vector<TensorSource>& sources,
                       const std::vector<TensorSource>& biases) {
    bool any = false;
    for (const TensorSource& bias : biases) any = any || bias;
    if (!any) return;
    for (size_t i = 0; i < sources.size(); ++i) {
      const std::vector<float> values = biases[i]
                                            ? models::read_vector(biases[i])
                                            : std::vector<float>(size_t(sources[i].n()), 0.0f);
      result.bias.insert(result.bias.end(), values.begin(), values.end());
    }
  }

  void report(const TensorSource& source) {
    done_ += source.stored_bytes();
    if (progress_) progress_(done_);
  }

  bool fp32_;
  ThreadPool& pool_;
  const std::function<void(int64_t)>& progress_;
  int64_t done_ = 0;
};

}  // namespace

CpuWeights load_cpu_weights(const models::DecoderTensors& tensors,
                            bool fp32,
                            ThreadPool& pool,
                            const std::function<void(int64_t)>& progress) {
  Loader loader(fp32, pool, progress);
  return models::load_decoder<CpuWeights>(loader, tensors);
}

}  // namespace longspur::runtime

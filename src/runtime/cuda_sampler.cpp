#include "runtime/cuda_sampler.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "kernels/sampling/cuda/sample_cuda.h"

namespace longspur::runtime {

namespace sampling = kernels::sampling::cuda;

void CudaSampler::sample(const float* logits,
                         std::span<const kernels::sampling::SampleArgs> args,
                         std::span<Draw> draws,
                         const c10::Stream& stream) {
  const auto rows = int64_t(args.size());
  sampling::pack(args, packed_);
  const auto request_bytes = int64_t(packed_.bytes.size());
  requests_.reserve(request_bytes);
  std::memcpy(requests_.host(), packed_.bytes.data(), packed_.bytes.size());
  requests_.send(request_bytes);

  const bool any_top =
      std::any_of(args.begin(), args.end(), [](const auto& a) { return a.logprobs_k > 0; });
  const int64_t result_bytes = rows * int64_t(sizeof(sampling::RowResult));
  const int64_t top_bytes = rows * sampling::kMaxTop * int64_t(sizeof(sampling::Entry));
  rows_.reserve(result_bytes + top_bytes);
  if (!adjusted_.defined()) {
    const auto options = at::TensorOptions(at::kFloat).device(stream.device());
    adjusted_ = at::empty({Executor::kLogitRows, vocab_}, options);
    counts_ = at::zeros({Executor::kLogitRows, vocab_}, options.dtype(at::kInt));
  }

  sampling::SampleRowsArgs launch{};
  launch.logits = logits;
  launch.adjusted = adjusted_.data_ptr<float>();
  launch.counts = counts_.data_ptr<int32_t>();
  launch.rows = reinterpret_cast<const sampling::Row*>(requests_.device());
  launch.bias = reinterpret_cast<const sampling::Bias*>(requests_.device() + packed_.bias_offset);
  launch.ids = reinterpret_cast<const int32_t*>(requests_.device() + packed_.ids_offset);
  launch.results = reinterpret_cast<sampling::RowResult*>(rows_.device());
  launch.top = reinterpret_cast<sampling::Entry*>(rows_.device() + result_bytes);
  launch.row_count = rows;
  launch.vocab = vocab_;
  if (const auto status = sampling::sample_rows(launch, stream.native_handle()))
    throw Error(concat("device cuda: sample_rows: ", status));
  rows_.fetch(any_top ? result_bytes + top_bytes : result_bytes);
  stream.synchronize();

  const auto* results = reinterpret_cast<const sampling::RowResult*>(rows_.host());
  const auto* entries = reinterpret_cast<const sampling::Entry*>(rows_.host() + result_bytes);
  for (size_t i = 0; i < args.size(); ++i) {
    const std::span<const sampling::Entry> own(entries + i * sampling::kMaxTop, sampling::kMaxTop);
    draws[i].error =
        packed_.errors[i].empty()
            ? sampling::unpack(results[i], own, args[i].logprobs_k >= 0, draws[i].result)
            : packed_.errors[i];
  }
}

}  // namespace longspur::runtime

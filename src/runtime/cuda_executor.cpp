// Weights, cache and activations on one device; see cuda_backend.h for the operations. Small steps
// (decode) are hundreds of launches of a few microseconds each: a step whose shape was seen before
// is recorded once and replayed.
#include "runtime/cuda_executor.h"

#include <ATen/Functions.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/error.h"
#include "base/shape.h"
#include "kernels/common/cuda/device.h"
#include "models/rope_params.h"
#include "runtime/cuda_backend.h"
#include "runtime/cuda_memory.h"
#include "runtime/cuda_sampler.h"
#include "runtime/cuda_transfer.h"
#include "runtime/cuda_weights.h"

namespace longspur::runtime {

namespace {

namespace paged = kernels::attention::cuda;

constexpr int64_t kLeastRopePositions = 1024;

// Runs f with torch's errors turned into ours: one line, without torch's stack.
template <class F>
auto guarded(F&& f) {
  try {
    return f();
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    throw Error(concat("device cuda: ", text.substr(0, text.find('\n'))));
  }
}

class CudaExecutor final : public Executor {
 public:
  CudaExecutor(const io::ModelConfig& config,
               const models::DecoderTensors& tensors,
               const DeviceExecutorOptions& options,
               const std::function<void(int64_t)>& progress)
      : config_(config),
        options_(options),
        device_(at::kCUDA, c10::DeviceIndex(options.device)),
        stream_(c10::impl::VirtualGuardImpl(at::kCUDA).getStreamFromGlobalPool(device_)),
        rope_(models::rope_params(config)),
        inputs_(device_),
        sampler_(device_, config.vocab) {
    const Scope scope(stream_);
    weights_ = load_cuda_weights(tensors, type(), device_, progress);
    make_buffers();
    host_logits_ =
        at::empty({kLogitRows, config.vocab}, at::TensorOptions(at::kFloat).pinned_memory(true));
    stream_.synchronize();
  }

  ~CudaExecutor() override {
    try {
      stream_.synchronize();
    } catch (const c10::Error&) {  // a device that failed has nothing left to wait for
    }
  }

  int64_t weights_bytes() const override {
    int64_t bytes = weights_.embedding.bytes();
    if (!weights_.head.weight.is_same(weights_.embedding.weight)) bytes += weights_.head.bytes();
    for (const CudaLayer& layer : weights_.layers) {
      bytes +=
          layer.qkv.bytes() + layer.output.bytes() + layer.gate_up.bytes() + layer.down.bytes();
    }
    return bytes;
  }

  int64_t workspace_bytes() const override { return cuda_workspace_bytes(config_, options_); }
  int64_t page_bytes() const override { return cuda_page_bytes(config_, options_.fp32); }

  void allocate_pages(int64_t pages) override {
    guarded([&] {
      const Scope scope(stream_);
      pool_ = at::empty({pages * page_bytes()}, bytes_on_device());
      step_.pool = pool_.data_ptr();
    });
  }

  void forward(const ForwardBatch& batch) override {
    LONGSPUR_ASSERT(int64_t(batch.tokens.size()) <= options_.max_tokens);
    LONGSPUR_ASSERT(step_.pool != nullptr);
    guarded([&] {
      const Scope scope(stream_);
      upload(batch);
      outputs_ = int64_t(batch.output_rows.size());
      ready_rows_ = outputs_ <= kLogitRows ? outputs_ : 0;
      run_or_replay();
    });
    step_.batch = nullptr;
  }

  AttentionStats attention_stats() override {
    AttentionStats stats;
    guarded([&] {
      const Scope scope(stream_);
      stats.prefill_s = timer_.seconds();
    });
    return stats;
  }
  void reset_attention_stats() override {
    guarded([&] {
      const Scope scope(stream_);
      timer_.reset();
    });
  }

  const float* logits(int64_t first, int64_t count) override {
    LONGSPUR_ASSERT(count <= kLogitRows && first >= 0 && first + count <= outputs_);
    guarded([&] {
      const Scope scope(stream_);
      const auto options = at::TensorOptions(at::kFloat).device(device_);
      float* rows = device_logits(first, count);
      host_logits_.narrow(0, 0, count)
          .copy_(at::from_blob(rows, {count, config_.vocab}, options));  // waits
      idle_ = true;
    });
    return host_logits_.const_data_ptr<float>();
  }

  bool sample(std::span<const kernels::sampling::SampleArgs> args, std::span<Draw> draws) override {
    if (!kernels::sampling::cuda::accepts(args)) return false;
    LONGSPUR_ASSERT(int64_t(args.size()) == outputs_ && args.size() == draws.size());
    guarded([&] {
      const Scope scope(stream_);
      for (int64_t first = 0; first < outputs_; first += kLogitRows) {
        const int64_t count = std::min(kLogitRows, outputs_ - first);
        sampler_.sample(device_logits(first, count), args.subspan(size_t(first), size_t(count)),
                        draws.subspan(size_t(first), size_t(count)), stream_);
        idle_ = true;
      }
    });
    return true;
  }

 private:
  // Torch's state while the executor works: no autograd, our device and stream.
  struct Scope {
    explicit Scope(const c10::Stream& stream) : guard(stream) {
      check(kernels::use_device(stream.device_index()), "choosing the device");
    }
    c10::InferenceMode inference;
    c10::StreamGuard guard;
  };
  // What the launches of a step depend on besides the contents of buffers.
  using Shape = std::array<int64_t, 6>;

  at::ScalarType type() const { return options_.fp32 ? at::kFloat : at::kBFloat16; }
  at::TensorOptions bytes_on_device() const { return at::TensorOptions(at::kByte).device(device_); }

  // All activations in one allocation.
  void make_buffers() {
    const CudaActivations a = cuda_activations(config_, options_);
    const auto typed = int64_t(c10::elementSize(type()));
    struct Piece {
      void** pointer;
      int64_t bytes;
    };
    const std::array<Piece, 8> pieces = {{
        {reinterpret_cast<void**>(&step_.hidden), a.hidden * 4},
        {reinterpret_cast<void**>(&step_.picked), a.picked * 4},
        {reinterpret_cast<void**>(&step_.logits), a.logits * 4},
        {reinterpret_cast<void**>(&step_.scratch), a.scratch * 4},
        {&step_.normed, a.normed * typed},
        {&step_.wide, a.wide * typed},
        {&step_.inner, a.inner * typed},
        {&step_.delta, a.delta * typed},
    }};
    constexpr int64_t kAlign = 256;
    int64_t total = 0;
    for (const Piece& piece : pieces) total += round_up(piece.bytes, kAlign);
    buffers_ = at::empty({total}, bytes_on_device());
    auto* next = static_cast<std::byte*>(buffers_.data_ptr());
    for (const Piece& piece : pieces) {
      *piece.pointer = next;
      next += round_up(piece.bytes, kAlign);
    }
    step_.config = &config_;
    step_.type = type();
    step_.device = device_;
    step_.stream = stream_.native_handle();
    step_.scratch_floats = a.scratch;
  }

  // Everything the kernels read of a batch, in one transfer.
  void upload(const ForwardBatch& batch) {
    if (!idle_) stream_.synchronize();  // the last transfer may still read the host block
    idle_ = false;
    step_.batch = &batch;
    step_.t = int64_t(batch.tokens.size());
    const auto sequences = int64_t(batch.kv_lens.size()), t = step_.t,
               outputs = int64_t(batch.output_rows.size()),
               table_rows = config_.layers * sequences * config_.kv_heads;
    int64_t longest = 0;
    for (const int32_t length : batch.kv_lens) longest = std::max<int64_t>(longest, length);
    step_.max_kv_len = round_up(longest, kCudaLengthStep);
    step_.max_blocks = step_.max_kv_len / paged::kPageTokens;

    const int64_t values = 3 * t + outputs + sequences + table_rows * step_.max_blocks;
    if (inputs_.reserve(values * int64_t(sizeof(int32_t)))) graph_.reset();
    auto* const host = reinterpret_cast<int32_t*>(inputs_.host());
    auto* const device = reinterpret_cast<const int32_t*>(inputs_.device());
    int32_t* next = host;
    const auto place = [&](int64_t count, const int32_t*& pointer) {
      pointer = device + (next - host);
      int32_t* const begin = next;
      next += count;
      return begin;
    };
    std::copy(batch.tokens.begin(), batch.tokens.end(), place(t, step_.tokens));
    int32_t* const sequence = place(t, step_.sequence);
    int32_t* const position = place(t, step_.position);
    for (size_t b = 0; b < batch.kv_lens.size(); ++b) {
      const int32_t begin = batch.cu_seqlens[b], end = batch.cu_seqlens[b + 1];
      std::fill(sequence + begin, sequence + end, int32_t(b));
      for (int32_t row = begin; row < end; ++row) position[row] = batch.kv_lens[b] - (end - row);
    }
    std::copy(batch.output_rows.begin(), batch.output_rows.end(),
              place(outputs, step_.output_rows));
    prepare_rope(batch, place(sequences, step_.table_start));
    int32_t* const table = place(table_rows * step_.max_blocks, step_.block_table);
    for (int64_t row = 0; row < table_rows; ++row) {
      std::copy_n(batch.block_table.begin() + row * batch.max_blocks, batch.max_blocks,
                  table + row * step_.max_blocks);
    }
    inputs_.send(values * int64_t(sizeof(int32_t)));
  }

  // Tables for the batch's positions. Dynamic scaling gives each sequence one of its own, which
  // starts at start[b].
  void prepare_rope(const ForwardBatch& batch, int32_t* start) {
    std::fill_n(start, batch.kv_lens.size(), 0);
    if (rope_.kind != kernels::attention::RopeKind::kDynamic) {
      step_.table_start = nullptr;
      const auto needed = *std::max_element(batch.kv_lens.begin(), batch.kv_lens.end());
      if (needed <= rope_positions_) return;
      rope_positions_ = std::max(kLeastRopePositions, int64_t(std::bit_ceil(uint32_t(needed))));
      const auto table =
          kernels::attention::make_rope_table(rope_, rope_positions_, rope_positions_);
      set_rope(table.cos, table.sin);
      return;
    }
    std::vector<float> cos, sin;
    const int64_t half = config_.rotary_dim / 2;
    for (size_t b = 0; b < batch.kv_lens.size(); ++b) {
      start[b] = int32_t(int64_t(cos.size()) / half);
      const auto table =
          kernels::attention::make_rope_table(rope_, batch.kv_lens[b], batch.rope_lens[b]);
      cos.insert(cos.end(), table.cos.begin(), table.cos.end());
      sin.insert(sin.end(), table.sin.begin(), table.sin.end());
    }
    set_rope(cos, sin);
  }

  void set_rope(const std::vector<float>& cos, const std::vector<float>& sin) {
    cos_ = at::tensor(cos).to(device_);
    sin_ = at::tensor(sin).to(device_);
    step_.cos = cos_.const_data_ptr<float>();
    step_.sin = sin_.const_data_ptr<float>();
    graph_.reset();
  }

  void run_or_replay() {
    const Shape shape = {step_.t,          int64_t(step_.batch->kv_lens.size()),
                         outputs_,         step_.max_kv_len,
                         step_.max_blocks, step_.table_start != nullptr};
    if (!only_launches(step_) || step_.table_start != nullptr) {
      run();
      return;
    }
    if (graph_.ready() && shape == recorded_) {
      check(graph_.launch(step_.stream), "graph launch");
      return;
    }
    // Recording costs about as much as a step: not for a shape that came once.
    if (shape == last_shape_) {
      record();
      recorded_ = shape;
      check(graph_.launch(step_.stream), "graph launch");
    } else {
      run();
    }
    last_shape_ = shape;
  }

  void run() {
    // A step that is recorded has few rows, and no events in its recording.
    const bool timed = !only_launches(step_) && prompt_share(*step_.batch) > 0;
    step_.attention_timer = timed ? &timer_ : nullptr;
    CudaBackend backend(step_);
    hidden_ = models::decoder_hidden(backend, weights_);
    if (ready_rows_ > 0)
      models::decoder_logits(backend, weights_, hidden_);
    else
      backend.settle(hidden_);
  }

  void record() {
    check(graph_.begin(step_.stream), "graph begin");
    try {
      run();
    } catch (...) {
      graph_.abandon(step_.stream);
      throw;
    }
    check(graph_.end(step_.stream), "graph end");
  }

  static void check(kernels::CudaStatus status, const char* what) {
    if (status != nullptr) throw Error(concat("device cuda: ", what, ": ", status));
  }

  float* device_logits(int64_t first, int64_t count) {
    if (first + count <= ready_rows_) return step_.logits + first * config_.vocab;
    CudaAct rows = hidden_;
    rows.data = static_cast<float*>(hidden_.data) + first * hidden_.width;
    rows.rows = count;
    CudaBackend backend(step_);
    models::decoder_logits(backend, weights_, rows);
    return step_.logits;
  }

  io::ModelConfig config_;
  DeviceExecutorOptions options_;
  at::Device device_;
  c10::Stream stream_;
  kernels::attention::RopeParams rope_;
  CudaTransfer inputs_;
  CudaSampler sampler_;
  CudaWeights weights_;
  CudaStep step_;
  CudaTimer timer_;
  CudaAct hidden_;  // of the last forward, rows whose logits are wanted
  at::Tensor pool_, buffers_, cos_, sin_, host_logits_;
  int64_t rope_positions_ = 0, outputs_ = 0, ready_rows_ = 0;
  bool idle_ = true;  // the stream was waited for since the last transfer
  kernels::LaunchGraph graph_;
  Shape recorded_{}, last_shape_{};
};

}  // namespace

std::unique_ptr<Executor> make_cuda_executor(const io::ModelConfig& config,
                                             const models::DecoderTensors& tensors,
                                             const DeviceExecutorOptions& options,
                                             const std::function<void(int64_t)>& progress) {
  if (config.head_dim % 8 != 0 || config.head_dim > 256) {
    throw UnsupportedError(concat("device cuda: head size: found ", config.head_dim,
                                  ", expected a multiple of 8 up to 256"));
  }
  if (config.hidden > kernels::elementwise::cuda::kMaxNormWidth) {
    throw UnsupportedError(concat("device cuda: hidden size: found ", config.hidden,
                                  ", expected at most ",
                                  kernels::elementwise::cuda::kMaxNormWidth));
  }
  return guarded(
      [&] { return std::make_unique<CudaExecutor>(config, tensors, options, progress); });
}

}  // namespace longspur::runtime

#include "runtime/cpu_executor.h"

#include <algorithm>

#include "base/aligned_buffer.h"
#include "base/error.h"
#include "base/shape.h"
#include "models/rope_params.h"
#include "runtime/cpu_backend.h"
#include "runtime/cpu_weights.h"

namespace longspur::runtime {

namespace attention = kernels::attention;
namespace qgemm = kernels::qgemm;

namespace {

// RoPE tables grow in steps of this many positions: a short prompt does not pay for the model's
// whole context.
constexpr int64_t kRopeStep = 1024;

int64_t wide_width(const io::ModelConfig& c) {
  return std::max((c.heads + 2 * c.kv_heads) * c.head_dim, 2 * c.intermediate);
}

int64_t activation_floats(const io::ModelConfig& c, const CpuExecutorOptions& options) {
  return options.max_tokens * (c.hidden + wide_width(c) + c.heads * c.head_dim) +
         Executor::kLogitRows * c.vocab;
}

// Scratch of the widest product, over all types a product may have.
int64_t matmul_scratch(const io::ModelConfig& c, const CpuExecutorOptions& options) {
  const int64_t k = std::max({c.hidden, c.intermediate, c.heads * c.head_dim});
  const bool any_precision = options.nvfp4_activations.has_value();
  int64_t bytes = 0;
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kQ8_0, DType::kQ4_0,
                      DType::kQ4_1, DType::kNVFP4}) {
    const int64_t needed = qgemm::workspace_bytes(dtype, options.max_tokens, k, any_precision);
    bytes = std::max(bytes, needed);
  }
  return bytes;
}

attention::KvType kv_type_of(const CpuExecutorOptions& options) {
  if (options.nvfp4_cache) return attention::KvType::kNVFP4;
  return options.fp32 ? attention::KvType::kF32 : attention::KvType::kBF16;
}

class CpuExecutor final : public Executor {
 public:
  CpuExecutor(const io::ModelConfig& config,
              const models::DecoderTensors& tensors,
              const CpuExecutorOptions& options,
              ThreadPool& pool,
              const std::function<void(int64_t)>& progress)
      : config_(config), options_(options), pool_(pool), rope_(models::rope_params(config)) {
    weights_ = load_cpu_weights(tensors, options.fp32, pool, progress);
    shape_ = {config.hidden,   config.intermediate, config.heads,          config.kv_heads,
              config.head_dim, config.rotary_dim,   float(config.rms_eps), config.sliding_window};
    activations_ = AlignedBuffer(size_t(activation_floats(config, options)) * sizeof(float));
    matmul_workspace_ = AlignedBuffer(size_t(matmul_scratch(config, options)));
    step_.shape = &shape_;
    step_.kv_type = kv_type();
    step_.hidden = activations_.as<float>();
    step_.wide = step_.hidden + options.max_tokens * config.hidden;
    step_.attended = step_.wide + options.max_tokens * wide_width(config);
    step_.logits = step_.attended + options.max_tokens * config.heads * config.head_dim;
    step_.matmul_workspace = matmul_workspace_.data();
    step_.attention_s = &attention_s_;
    if (options.attention.xattention) {
      xattention_.emplace(*options.attention.xattention, config, options.max_context);
      step_.xattention = &*xattention_;
    }
    if (options.nvfp4_activations) {
      step_.precision = qgemm::ActPrecision::kNvfp4;
      step_.act_rule = *options.nvfp4_activations;
    }
  }

  int64_t weights_bytes() const override {
    int64_t bytes = linear_bytes(weights_.embedding);
    if (weights_.head.parts != weights_.embedding.parts) bytes += linear_bytes(weights_.head);
    for (const CpuLayer& layer : weights_.layers) {
      bytes += linear_bytes(layer.qkv) + linear_bytes(layer.output) + linear_bytes(layer.gate_up) +
               linear_bytes(layer.down);
    }
    return bytes;
  }

  int64_t workspace_bytes() const override {
    return int64_t(activations_.size() + matmul_workspace_.size() + attention_workspace_.size()) +
           (xattention_ ? xattention_->workspace_bytes() : 0);
  }

  int64_t page_bytes() const override {
    return attention::page_bytes(kv_type(), config_.head_dim) +
           (xattention_ ? xattention_->page_bytes() : 0);
  }

  void allocate_pages(int64_t pages) override {
    pages_ = AlignedBuffer(size_t(pages * attention::page_bytes(kv_type(), config_.head_dim)));
    if (xattention_) xattention_->allocate_pages(pages);
    step_.pool = pages_.data();
  }

  void forward(const ForwardBatch& batch) override {
    LONGSPUR_ASSERT(int64_t(batch.tokens.size()) <= options_.max_tokens);
    LONGSPUR_ASSERT(step_.pool != nullptr);
    step_.batch = &batch;
    prepare_rope(batch);
    prepare_attention(batch);
    outputs_ = int64_t(batch.output_rows.size());
    ready_rows_ = outputs_ <= kLogitRows ? outputs_ : 0;
    attention_s_ = 0;
    pool_.run([&](Team& team) {
      CpuBackend backend(team, step_);
      const auto hidden = models::decoder_hidden(backend, weights_);
      if (ready_rows_ > 0) models::decoder_logits(backend, weights_, hidden);
    });
    prefill_attention_s_ += attention_s_ * prompt_share(batch);
  }

  AttentionStats attention_stats() override {
    AttentionStats stats = xattention_ ? xattention_->stats() : AttentionStats();
    stats.prefill_s = prefill_attention_s_;
    return stats;
  }
  void reset_attention_stats() override {
    if (xattention_) xattention_->reset_stats();
    prefill_attention_s_ = 0;
  }

  const float* logits(int64_t first, int64_t count) override {
    LONGSPUR_ASSERT(count <= kLogitRows && first >= 0 && first + count <= outputs_);
    if (first + count <= ready_rows_) return step_.logits + first * config_.vocab;
    const CpuBackend::Act rows{step_.hidden + first * config_.hidden, count, config_.hidden};
    pool_.run([&](Team& team) {
      CpuBackend backend(team, step_);
      models::decoder_logits(backend, weights_, rows);
    });
    return step_.logits;
  }

 private:
  attention::KvType kv_type() const { return kv_type_of(options_); }

  static int64_t linear_bytes(const CpuLinear& linear) {
    int64_t bytes = 0;
    for (const auto& part : linear.parts) bytes += part->bytes();
    return bytes;
  }

  void prepare_rope(const ForwardBatch& batch) {
    if (rope_.kind == attention::RopeKind::kDynamic) {
      sequence_rope_.clear();
      for (size_t b = 0; b < batch.kv_lens.size(); ++b) {
        attention::RopeTable table =
            attention::make_rope_table(rope_, batch.kv_lens[b], batch.rope_lens[b]);
        sequence_rope_.push_back(std::move(table.cos));
        sequence_rope_.push_back(std::move(table.sin));
      }
      step_.sequence_rope = &sequence_rope_;
      return;
    }
    int64_t needed = 0;
    for (int32_t length : batch.kv_lens) needed = std::max<int64_t>(needed, length);
    if (needed > table_positions_) {
      table_positions_ = round_up(needed, kRopeStep);
      table_ = attention::make_rope_table(rope_, table_positions_, table_positions_);
    }
    step_.rope_cos = table_.cos.data();
    step_.rope_sin = table_.sin.data();
  }

  void prepare_attention(const ForwardBatch& batch) {
    attention::PagedKv kv;
    kv.type = kv_type();
    kv.head_dim = config_.head_dim;
    kv.kv_heads = config_.kv_heads;
    kv.block_table = batch.block_table.data();
    kv.max_blocks = batch.max_blocks;
    const attention::BatchShape shape{int64_t(batch.kv_lens.size()), batch.cu_seqlens.data(),
                                      batch.kv_lens.data()};
    if (xattention_) xattention_->prepare(batch, kv, pool_.size());
    const int64_t bytes = attention::workspace_bytes(shape, config_.heads, kv, pool_.size(),
                                                     xattention_ ? xattention_->mask() : nullptr);
    if (bytes > int64_t(attention_workspace_.size())) {
      attention_workspace_ =
          AlignedBuffer();  // the old one goes first: they need not live together
      attention_workspace_ = AlignedBuffer(size_t(bytes));
    }
    step_.attention_workspace = attention_workspace_.data();
  }

  io::ModelConfig config_;
  CpuExecutorOptions options_;
  ThreadPool& pool_;
  attention::RopeParams rope_;
  CpuWeights weights_;
  CpuModelShape shape_;
  CpuStep step_;
  AlignedBuffer activations_, matmul_workspace_, attention_workspace_, pages_;
  attention::RopeTable table_;
  int64_t table_positions_ = 0;
  std::vector<std::vector<float>> sequence_rope_;
  int64_t outputs_ = 0;     // rows of the last forward
  int64_t ready_rows_ = 0;  // of these, rows whose logits the forward computed already
  std::optional<CpuXattention> xattention_;
  double attention_s_ = 0;  // of the last forward
  double prefill_attention_s_ = 0;
};

}  // namespace

int64_t cpu_weights_bytes(const models::DecoderTensors& tensors, bool fp32) {
  int64_t bytes = 0;
  const auto add = [&](const models::TensorSource& source) {
    if (source) bytes += qgemm::packed_bytes(cpu_weight_type(source, fp32), source.n(), source.k());
  };
  add(tensors.embedding);
  add(tensors.head);
  for (const models::LayerTensors& t : tensors.layers) {
    for (const auto* source : {&t.q, &t.k, &t.v, &t.output, &t.gate, &t.up, &t.down}) add(*source);
  }
  return bytes;
}

CpuCacheNeeds cpu_cache_needs(const io::ModelConfig& config, const CpuExecutorOptions& options) {
  const attention::KvType type = kv_type_of(options);
  const int64_t d = config.head_dim;
  if (type == attention::KvType::kNVFP4 && (d % 16 != 0 || d > attention::kMaxNvfp4Dim)) {
    throw UnsupportedError(concat("kv-type nvfp4: found head size ", d,
                                  ", expected a multiple of 16 up to ", attention::kMaxNvfp4Dim));
  }
  int64_t bytes = attention::page_bytes(type, d);
  if (options.attention.xattention)
    bytes += CpuXattention(*options.attention.xattention, config, options.max_context).page_bytes();
  return {bytes, attention::side_blocks(type)};
}

int64_t cpu_workspace_bytes(const io::ModelConfig& config, const CpuExecutorOptions& options) {
  return activation_floats(config, options) * int64_t(sizeof(float)) +
         matmul_scratch(config, options);
}

std::unique_ptr<Executor> make_cpu_executor(const io::ModelConfig& config,
                                            const models::DecoderTensors& tensors,
                                            const CpuExecutorOptions& options,
                                            ThreadPool& pool,
                                            const std::function<void(int64_t)>& progress) {
  return std::make_unique<CpuExecutor>(config, tensors, options, pool, progress);
}

}  // namespace longspur::runtime

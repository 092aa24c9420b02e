#include "runtime/cuda_backend.h"

#include <ATen/Functions.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "base/error.h"
#include "kernels/nvfp4/cuda/matmul.h"
#include "kernels/qgemm/cuda/gemv_cuda.h"
#include "ops/attention.h"

namespace longspur::runtime {

namespace paged = kernels::attention::cuda;
namespace elementwise = kernels::elementwise::cuda;
namespace gemv = kernels::qgemm::cuda;
namespace nvfp4 = kernels::nvfp4::cuda;

namespace {

// From this many query rows a sequence's pages are gathered and go through the dense attention,
// which reads keys once a tile of queries instead of once a query.
constexpr int64_t kPrefillRows = 16;

void check(kernels::CudaStatus status, const char* what) {
  if (status != nullptr) throw Error(concat("device cuda: ", what, ": ", status));
}

const float* float_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr;
}

std::byte* row_of(const CudaAct& x, int64_t row) {
  return static_cast<std::byte*>(x.data) + row * x.width * int64_t(c10::elementSize(x.type));
}

CudaAct rows_of(const CudaAct& x, int64_t first, int64_t count) {
  return {row_of(x, first), count, x.width, x.type, x.weight};
}

c10::Stream current_stream(at::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

int64_t rows_in(const ForwardBatch& batch, std::size_t b) {
  return batch.cu_seqlens[b + 1] - batch.cu_seqlens[b];
}

}  // namespace

void CudaTimer::begin(const c10::Stream& stream) {
  if (pending_.size() == kMostPending) settle();
  constexpr auto kTimed = c10::EventFlag::BACKEND_DEFAULT;
  pending_.emplace_back(c10::Event(stream.device_type(), kTimed),
                        c10::Event(stream.device_type(), kTimed));
  pending_.back().first.record(stream);
}

void CudaTimer::end(const c10::Stream& stream) { pending_.back().second.record(stream); }

void CudaTimer::settle() {
  for (const auto& [first, last] : pending_) {
    last.synchronize();
    seconds_ += first.elapsedTime(last) / 1000;
  }
  pending_.clear();
}

double CudaTimer::seconds() {
  settle();
  return seconds_;
}

void CudaTimer::reset() {
  pending_.clear();
  seconds_ = 0;
}

elementwise::Type CudaBackend::elementwise_type(at::ScalarType type) const {
  return type == at::kFloat ? elementwise::Type::kF32 : elementwise::Type::kBF16;
}

at::Tensor CudaBackend::view(const Act& x) const {
  return at::from_blob(x.data, {x.rows, x.width}, at::TensorOptions(x.type).device(step_.device));
}

paged::PagedCache CudaBackend::cache_of(std::size_t layer) const {
  const io::ModelConfig& config = *step_.config;
  const int64_t sequences = int64_t(step_.batch->kv_lens.size());
  paged::PagedCache cache;
  cache.pool = step_.pool;
  cache.block_table =
      step_.block_table + int64_t(layer) * sequences * config.kv_heads * step_.max_blocks;
  cache.max_blocks = step_.max_blocks;
  cache.kv_heads = config.kv_heads;
  cache.head_dim = config.head_dim;
  cache.type = step_.type == at::kFloat ? paged::Type::kF32 : paged::Type::kBF16;
  return cache;
}

CudaBackend::Act CudaBackend::embed(const CudaLinear& embedding) {
  const int64_t c = embedding.k;
  const Act hidden{step_.hidden, step_.t, c, at::kFloat, nullptr};
  check(elementwise::embed(
            {step_.tokens, embedding.weight.const_data_ptr(), step_.hidden, step_.t, c},
            elementwise_type(step_.type), step_.stream),
        "embed");
  return hidden;
}

CudaBackend::Act CudaBackend::rms_norm(const Act& hidden, const at::Tensor& weight) {
  const Act y = typed(step_.normed, hidden.rows, hidden.width);
  const bool add = std::exchange(pending_, false);
  if (hidden.rows == 0) return y;
  elementwise::AddNormArgs args;
  args.hidden = static_cast<float*>(hidden.data);
  args.delta = add ? step_.delta : nullptr;
  args.weight = weight.const_data_ptr<float>();
  args.y = y.data;
  args.eps = float(step_.config->rms_eps);
  args.t = hidden.rows;
  args.c = hidden.width;
  check(elementwise::add_rms_norm(args, elementwise_type(step_.type), step_.stream),
        "add_rms_norm");
  return y;
}

void CudaBackend::settle(const Act& hidden) {
  if (std::exchange(pending_, false) && hidden.rows > 0)
    view(hidden).add_(view(typed(step_.delta, hidden.rows, hidden.width)));
}

CudaBackend::Act CudaBackend::linear(const CudaLinear& weight, const Act& x) {
  Act lazy = x;
  lazy.weight = &weight;
  return lazy;
}

CudaBackend::Act CudaBackend::swiglu(const Act& x) {
  const int64_t f = x.weight->n / 2;
  const Act y = typed(step_.inner, x.rows, f);
  if (x.rows == 0) return y;
  if (is_small(x) && !x.weight->is_nvfp4()) {
    small_product(*x.weight, x, y, true);
    return y;
  }
  const Act gate_up = typed(step_.wide, x.rows, 2 * f);
  product(*x.weight, x, gate_up);
  check(elementwise::swiglu({gate_up.data, y.data, x.rows, f}, elementwise_type(step_.type),
                            step_.stream),
        "swiglu");
  return y;
}

bool CudaBackend::is_small(const Act& x) const {
  return step_.type == at::kBFloat16 && gemv::gemv_accepts(x.rows, x.width);
}

void CudaBackend::small_product(const CudaLinear& weight,
                                const Act& x,
                                const Act& y,
                                bool with_swiglu) {
  const auto result = with_swiglu            ? gemv::GemvResult::kSwiGlu
                      : y.type == at::kFloat ? gemv::GemvResult::kF32
                                             : gemv::GemvResult::kBF16;
  check(gemv::gemv({x.data, weight.weight.const_data_ptr(), float_or_null(weight.bias), y.data,
                    x.rows, y.width, x.width, result},
                   step_.stream),
        "gemv");
}

void CudaBackend::nvfp4_product(const CudaLinear& weight, const Act& x, const Act& y) {
  nvfp4::MatmulArgs args;
  args.w.packed = weight.packed.const_data_ptr();
  args.w.multiplier = weight.multiplier.const_data_ptr<float>();
  args.w.multiplier_per_row = true;
  args.w.n = weight.n;
  args.w.k = weight.k;
  args.x = x.data;
  args.bias = float_or_null(weight.bias);
  args.y = y.data;
  args.y_type = y.type == at::kFloat ? nvfp4::Type::kF32 : nvfp4::Type::kBF16;
  args.m = x.rows;
  check(nvfp4::matmul(args, step_.stream), "nvfp4 product");
}

void CudaBackend::product(const CudaLinear& weight, const Act& x, const Act& y) {
  if (x.rows == 0) return;
  if (weight.is_nvfp4()) {
    nvfp4_product(weight, x, y);
    return;
  }
  // fp32 results of more rows (logits) come in slices: cuBLAS would round them to bf16.
  const bool slices =
      step_.type == at::kBFloat16 && y.type == at::kFloat && gemv::gemv_accepts(1, x.width);
  if (is_small(x) || slices) {
    for (int64_t row = 0; row < x.rows; row += gemv::kGemvTokens) {
      const int64_t rows = std::min(gemv::kGemvTokens, x.rows - row);
      small_product(weight, rows_of(x, row, rows), rows_of(y, row, rows), false);
    }
    return;
  }
  at::Tensor out = view(y);
  if (y.type == x.type) {
    at::mm_out(out, view(x), weight.weight.t());
  } else {
    out.copy_(at::mm(view(x), weight.weight.t()));
  }
  if (weight.bias.defined()) out.add_(weight.bias);
}

CudaBackend::Act CudaBackend::logits(const CudaLinear& weight, const Act& x) {
  const Act y{step_.logits, x.rows, weight.n, at::kFloat, nullptr};
  product(weight, x, y);
  return y;
}

CudaBackend::Act CudaBackend::add_linear(const Act& hidden,
                                         const CudaLinear& weight,
                                         const Act& x) {
  LONGSPUR_ASSERT(!pending_);
  product(weight, x, typed(step_.delta, x.rows, weight.n));
  pending_ = true;
  return hidden;
}

void CudaBackend::rope_append(std::size_t layer, const CudaLayer& weights, const Act& qkv) {
  paged::RopeAppendArgs rope;
  rope.qkv = qkv.data;
  rope.cos = step_.cos;
  rope.sin = step_.sin;
  rope.table_start = step_.table_start;
  rope.q_norm = float_or_null(weights.q_norm);
  rope.k_norm = float_or_null(weights.k_norm);
  rope.norm_eps = float(step_.config->rms_eps);
  rope.heads = step_.config->heads;
  rope.rotary_dim = step_.config->rotary_dim;
  const paged::TokenMap map{step_.sequence, step_.position, qkv.rows};
  check(paged::rope_append(rope, map, cache_of(layer), step_.stream), "rope_append");
}

CudaBackend::Act CudaBackend::attention(std::size_t layer, const CudaLayer& weights, const Act& x) {
  const io::ModelConfig& config = *step_.config;
  const ForwardBatch& batch = *step_.batch;
  const Act qkv = typed(step_.wide, x.rows, x.weight->n);
  product(*x.weight, x, qkv);
  rope_append(layer, weights, qkv);

  const bool timed = step_.attention_timer != nullptr;
  if (timed) step_.attention_timer->begin(current_stream(step_.device));
  const Act out = typed(step_.inner, x.rows, config.heads * config.head_dim);
  const bool windowed = config.sliding_window[layer] > 0;
  const std::size_t sequences = batch.kv_lens.size();
  const auto is_prefill = [&](std::size_t b) {
    return !windowed && rows_in(batch, b) >= kPrefillRows;
  };
  for (std::size_t b = 0; b < sequences;) {
    if (is_prefill(b)) {
      prefill_attention(layer, b++, qkv, out);
      continue;
    }
    // Neighbouring sequences with few rows share launches; a launch's scratch is bounded.
    const std::size_t begin = b;
    for (; b < sequences && !is_prefill(b);) ++b;
    const int64_t row_floats =
        paged::decode_scratch_bytes(1, config.heads, config.head_dim, step_.max_kv_len) /
        int64_t(sizeof(float));
    const int64_t most = std::max<int64_t>(1, step_.scratch_floats / row_floats);
    for (int64_t row = batch.cu_seqlens[begin]; row < batch.cu_seqlens[b]; row += most)
      paged_attention(layer, row, std::min(most, batch.cu_seqlens[b] - row), qkv, out);
  }
  if (timed) step_.attention_timer->end(current_stream(step_.device));
  return out;
}

void CudaBackend::paged_attention(
    std::size_t layer, int64_t row, int64_t count, const Act& qkv, const Act& out) {
  const io::ModelConfig& config = *step_.config;
  paged::DecodeArgs args;
  args.q = row_of(qkv, row);
  args.ldq = qkv.width;
  args.out = row_of(out, row);
  args.partial = step_.scratch;
  args.heads = config.heads;
  args.max_kv_len = step_.max_kv_len;
  args.scale = 1.0f / std::sqrt(float(config.head_dim));
  args.window = config.sliding_window[layer];
  const paged::TokenMap map{step_.sequence + row, step_.position + row, count};
  check(paged::paged_decode(args, map, cache_of(layer), step_.stream), "paged_decode");
}

void CudaBackend::prefill_attention(std::size_t layer,
                                    std::size_t b,
                                    const Act& qkv,
                                    const Act& out) {
  const io::ModelConfig& config = *step_.config;
  const ForwardBatch& batch = *step_.batch;
  const int64_t row = batch.cu_seqlens[b], rows = rows_in(batch, b), kv_len = batch.kv_lens[b];
  const at::Tensor k = at::empty({kv_len, config.kv_heads, config.head_dim},
                                 at::TensorOptions(step_.type).device(step_.device));
  const at::Tensor v = at::empty_like(k);
  check(paged::gather_kv({int64_t(b), kv_len, k.data_ptr(), v.data_ptr()}, cache_of(layer),
                         step_.stream),
        "gather_kv");
  const at::Tensor q = view(rows_of(qkv, row, rows))
                           .narrow(1, 0, config.heads * config.head_dim)
                           .unflatten(1, {config.heads, config.head_dim});
  const auto lengths = [](int64_t n) { return at::tensor({int32_t(0), int32_t(n)}, at::kInt); };
  const auto [attended, lse] =
      ops::attention_forward(q, k, v, lengths(rows), lengths(kv_len), rows, kv_len,
                             /*causal=*/true, std::nullopt);
  view(rows_of(out, row, rows)).copy_(attended.flatten(1));
}

CudaBackend::Act CudaBackend::outputs(const Act& x) {
  const auto rows = int64_t(step_.batch->output_rows.size());
  if (rows == x.rows) return x;
  // The residual stream has a place for its chosen rows; attention's go where the norm's output
  // was.
  Act y = x;
  y.rows = rows;
  y.data = x.data == step_.hidden ? static_cast<void*>(step_.picked) : step_.normed;
  if (rows == 0) return y;
  check(elementwise::pick_rows({x.data, step_.output_rows, y.data, rows, x.width},
                               elementwise_type(x.type), step_.stream),
        "pick_rows");
  return y;
}

bool only_launches(const CudaStep& step) {
  const io::ModelConfig& config = *step.config;
  const int64_t attended = config.heads * config.head_dim;
  const auto rows = int64_t(step.batch->output_rows.size());
  const auto fits = [&](int64_t k) { return gemv::gemv_accepts(step.t, k); };
  return step.type == at::kBFloat16 && fits(config.hidden) && fits(config.intermediate) &&
         fits(attended) && rows <= Executor::kLogitRows && step.t < kPrefillRows;
}

}  // namespace longspur::runtime

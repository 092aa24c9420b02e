#include "runtime/cuda_backend.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/error.h"
#include "kernels/qgemm/cuda/gemv_cuda.h"
#include "ops/attention.h"

namespace longspur::runtime {

namespace paged = kernels::attention::cuda;
namespace elementwise = kernels::elementwise::cuda;
namespace gemv = kernels::qgemm::cuda;

namespace {

// From this many query rows a sequence's pages are gathered and go through the dense attention,
// which reads keys once a tile of queries instead of once a query.
constexpr int64_t kPrefillRows = 16;
// Query rows of one paged launch: bounds the scratch of a long windowed prefill.
constexpr int64_t kPagedRows = 64;

void check(kernels::CudaStatus status, const char* what) {
  if (status != nullptr) throw Error(concat("cuda: ", what, ": ", status));
}

const float* float_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr;
}

}  // namespace

elementwise::Type CudaBackend::elementwise_type() const {
  return step_.type == at::kFloat ? elementwise::Type::kF32 : elementwise::Type::kBF16;
}

paged::PagedCache CudaBackend::cache_of(std::size_t layer) const {
  paged::PagedCache cache;
  cache.pool = step_.pool.data_ptr();
  cache.block_table = step_.block_table[int64_t(layer)].const_data_ptr<int32_t>();
  cache.max_blocks = step_.batch->max_blocks;
  cache.kv_heads = step_.config->kv_heads;
  cache.head_dim = step_.config->head_dim;
  cache.type = step_.type == at::kFloat ? paged::Type::kF32 : paged::Type::kBF16;
  return cache;
}

CudaBackend::Act CudaBackend::embed(const CudaLinear& embedding) {
  const int64_t t = step_.tokens.size(0), c = embedding.weight.size(1);
  const at::Tensor hidden = at::empty({t, c}, embedding.weight.options().dtype(at::kFloat));
  check(elementwise::embed({step_.tokens.const_data_ptr<int32_t>(),
                            embedding.weight.const_data_ptr(), hidden.data_ptr<float>(), t, c},
                           elementwise_type(), step_.stream),
        "embed");
  return hidden;
}

CudaBackend::Act CudaBackend::rms_norm(const Act& hidden, const at::Tensor& weight) {
  const at::Tensor y = at::empty(hidden.sizes(), hidden.options().dtype(step_.type));
  if (hidden.size(0) == 0) return y;
  elementwise::AddNormArgs args;
  args.hidden = hidden.data_ptr<float>();
  args.delta = pending_.defined() ? pending_.const_data_ptr() : nullptr;
  args.weight = weight.const_data_ptr<float>();
  args.y = y.data_ptr();
  args.eps = float(step_.config->rms_eps);
  args.t = hidden.size(0);
  args.c = hidden.size(1);
  check(elementwise::add_rms_norm(args, elementwise_type(), step_.stream), "add_rms_norm");
  pending_ = at::Tensor();
  return y;
}

void CudaBackend::settle(const Act& hidden) {
  if (!pending_.defined() || hidden.size(0) == 0) return;
  hidden.add_(pending_);
  pending_ = at::Tensor();
}

CudaBackend::Act CudaBackend::swiglu(const Act& x) {
  const at::Tensor y = at::empty({x.size(0), x.size(1) / 2}, x.options());
  if (x.size(0) == 0) return y;
  check(elementwise::swiglu({x.const_data_ptr(), y.data_ptr(), y.size(0), y.size(1)},
                            elementwise_type(), step_.stream),
        "swiglu");
  return y;
}

CudaBackend::Act CudaBackend::product(const CudaLinear& w, const Act& x, at::ScalarType type) {
  const int64_t t = x.size(0), n = w.weight.size(0), k = w.weight.size(1);
  if (step_.type == at::kBFloat16 && gemv::gemv_accepts(std::min(t, gemv::kGemvTokens), k) &&
      (t <= gemv::kGemvTokens || type == at::kFloat)) {
    // fp32 results of more rows (logits) come in slices: cuBLAS would round them to bf16.
    const at::Tensor y = at::empty({t, n}, x.options().dtype(type));
    for (int64_t row = 0; row < t; row += gemv::kGemvTokens) {
      const int64_t rows = std::min(gemv::kGemvTokens, t - row);
      check(gemv::gemv({x.narrow(0, row, rows).const_data_ptr(), w.weight.const_data_ptr(),
                        float_or_null(w.bias), y.narrow(0, row, rows).data_ptr(), rows, n, k,
                        type == at::kFloat},
                       step_.stream),
            "gemv");
    }
    return y;
  }
  at::Tensor y = at::mm(x, w.weight.t());
  if (w.bias.defined()) y = at::add(y, w.bias).to(y.scalar_type());
  return y.to(type);
}

CudaBackend::Act CudaBackend::add_linear(const Act& hidden, const CudaLinear& w, const Act& x) {
  LONGSPUR_ASSERT(!pending_.defined());
  pending_ = product(w, x, step_.type);
  return hidden;
}

CudaBackend::Act CudaBackend::attention(std::size_t layer, const CudaLayer& w, const Act& qkv) {
  const io::ModelConfig& config = *step_.config;
  const ForwardBatch& batch = *step_.batch;
  const int64_t t = qkv.size(0);
  const paged::PagedCache cache = cache_of(layer);
  const paged::TokenMap map{step_.sequence.const_data_ptr<int32_t>(),
                            step_.position.const_data_ptr<int32_t>(), t};
  paged::RopeAppendArgs rope;
  rope.qkv = qkv.data_ptr();
  rope.cos = step_.cos.const_data_ptr<float>();
  rope.sin = step_.sin.const_data_ptr<float>();
  rope.q_norm = float_or_null(w.q_norm);
  rope.k_norm = float_or_null(w.k_norm);
  rope.norm_eps = float(config.rms_eps);
  rope.heads = config.heads;
  rope.rotary_dim = config.rotary_dim;
  check(paged::rope_append(rope, map, cache, step_.stream), "rope_append");

  const at::Tensor out = at::empty({t, config.heads * config.head_dim}, qkv.options());
  const bool windowed = config.sliding_window[layer] > 0;
  const std::size_t sequences = batch.kv_lens.size();
  const auto rows = [&](std::size_t i) { return batch.cu_seqlens[i + 1] - batch.cu_seqlens[i]; };
  for (std::size_t b = 0; b < sequences;) {
    if (rows(b) >= kPrefillRows && !windowed) {
      prefill_attention(layer, b++, qkv, out);
      continue;
    }
    // Neighbouring sequences with few rows share launches.
    const std::size_t begin = b;
    int64_t longest = 0;
    for (; b < sequences && (windowed || rows(b) < kPrefillRows); ++b) {
      longest = std::max<int64_t>(longest, batch.kv_lens[b]);
    }
    for (int64_t row = batch.cu_seqlens[begin]; row < batch.cu_seqlens[b]; row += kPagedRows) {
      const int64_t count = std::min(kPagedRows, batch.cu_seqlens[b] - row);
      paged_attention(layer, row, count, longest, qkv, out);
    }
  }
  return out;
}

void CudaBackend::paged_attention(std::size_t layer,
                                  int64_t row,
                                  int64_t count,
                                  int64_t longest,
                                  const Act& qkv,
                                  const Act& out) {
  const io::ModelConfig& config = *step_.config;
  paged::DecodeArgs args;
  args.q = qkv.narrow(0, row, count).const_data_ptr();
  args.ldq = qkv.size(1);
  args.out = out.narrow(0, row, count).data_ptr();
  args.partial = step_.partial.data_ptr<float>();
  args.heads = config.heads;
  args.max_kv_len = longest;
  args.scale = 1.0f / std::sqrt(float(config.head_dim));
  args.window = config.sliding_window[layer];
  const paged::TokenMap map{step_.sequence.const_data_ptr<int32_t>() + row,
                            step_.position.const_data_ptr<int32_t>() + row, count};
  check(paged::paged_decode(args, map, cache_of(layer), step_.stream), "paged_decode");
}

int64_t backend_scratch_floats(const CudaStep& step) {
  const int64_t rows = std::min<int64_t>(kPagedRows, int64_t(step.batch->tokens.size()));
  return paged::decode_scratch_bytes(rows, step.config->heads, step.config->head_dim,
                                     step.max_kv_len) /
         int64_t(sizeof(float));
}

void CudaBackend::prefill_attention(std::size_t layer,
                                    std::size_t b,
                                    const Act& qkv,
                                    const Act& out) {
  const io::ModelConfig& config = *step_.config;
  const ForwardBatch& batch = *step_.batch;
  const int64_t row = batch.cu_seqlens[b], rows = batch.cu_seqlens[b + 1] - row,
                kv_len = batch.kv_lens[b];
  const at::Tensor k = at::empty({kv_len, config.kv_heads, config.head_dim}, qkv.options());
  const at::Tensor v = at::empty_like(k);
  check(paged::gather_kv({int64_t(b), kv_len, k.data_ptr(), v.data_ptr()}, cache_of(layer),
                         step_.stream),
        "gather_kv");
  const at::Tensor q = qkv.narrow(0, row, rows)
                           .narrow(1, 0, config.heads * config.head_dim)
                           .reshape({rows, config.heads, config.head_dim});
  const auto lengths = [&](int64_t n) {
    return at::tensor({int32_t(0), int32_t(n)}, q.options().dtype(at::kInt));
  };
  const auto [attended, lse] = ops::attention(q, k, v, lengths(rows), lengths(kv_len), rows, kv_len,
                                              /*causal=*/true, std::nullopt);
  out.narrow(0, row, rows).copy_(attended.reshape({rows, config.heads * config.head_dim}));
}

CudaBackend::Act CudaBackend::outputs(const Act& x) {
  const auto rows = step_.batch->output_rows;
  if (int64_t(rows.size()) == x.size(0)) return x;
  const at::Tensor index = at::tensor(at::ArrayRef<int32_t>(rows.data(), rows.size()), at::kInt);
  return x.index_select(0, index.to(x.device()));
}

}  // namespace longspur::runtime

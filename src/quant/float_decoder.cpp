#include "quant/float_decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/shape.h"
#include "kernels/attention/rope.h"
#include "kernels/attention/varlen.h"
#include "kernels/nvfp4/codec.h"
#include "models/rope_params.h"

namespace longspur::quant {

namespace attention = kernels::attention;
namespace nvfp4 = kernels::nvfp4;
namespace qgemm = kernels::qgemm;

namespace {

constexpr int64_t kGrain = 16;  // rows a thread takes at once

template <class F>
void for_rows(ThreadPool& pool, int64_t rows, F&& f) {
  pool.run([&](Team& team) {
    team.dynamic_for(rows, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) f(row);
    });
  });
}

void rms_norm_row(
    const float* x, const std::vector<float>& weight, float eps, int64_t width, float* y) {
  float sum = 0.0f;
  for (int64_t i = 0; i < width; ++i) sum += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(sum / float(width) + eps);
  for (int64_t i = 0; i < width; ++i) y[i] = x[i] * scale * weight[size_t(i)];
}

// models/decoder.h's operations on whole matrices.
class Backend {
 public:
  using Act = Matrix;

  Backend(const io::ModelConfig& config,
          ThreadPool& pool,
          std::span<const int32_t> cu_seqlens,
          const FloatDecoder::LayerOptions& options)
      : config_(config), pool_(pool), cu_seqlens_(cu_seqlens), options_(options) {}

  Matrix rms_norm(const Matrix& x, const std::vector<float>& weight) {
    Matrix y(x.rows, x.width);
    for_rows(pool_, x.rows, [&](int64_t t) {
      rms_norm_row(x.row(t), weight, float(config_.rms_eps), x.width, y.row(t));
    });
    return y;
  }

  Matrix swiglu(const Matrix& x) {
    const int64_t width = x.width / 2;
    Matrix y(x.rows, width);
    for_rows(pool_, x.rows, [&](int64_t t) {
      const float *gate = x.row(t), *up = gate + width;
      float* out = y.row(t);
      for (int64_t i = 0; i < width; ++i) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
    });
    return y;
  }

  Matrix linear(const Product& w, Matrix x) {
    Matrix y(x.rows, w.weight->n());
    product(w, x, y, false);
    return y;
  }
  Matrix add_linear(Matrix residual, const Product& w, Matrix x) {
    product(w, x, residual, true);
    return residual;
  }
  Matrix outputs(Matrix x) { return x; }
  Matrix attention(size_t layer, const PackedLayer& w, Matrix& qkv);

 private:
  void product(const Product& w, Matrix& x, Matrix& y, bool accumulate) {
    if (options_.observer != nullptr) options_.observer->reads(w.site, x);
    if (options_.activations != nullptr) round_activations(x, *options_.activations, pool_);
    qgemm::MatmulArgs args;
    args.x = x.values.data();
    args.t = x.rows;
    args.ldx = x.width;
    args.y = y.values.data();
    args.ldy = y.width;
    args.accumulate = accumulate;
    args.bias = w.bias.empty() ? nullptr : w.bias.data();
    qgemm::matmul(pool_, *w.weight, args);
  }

  void rotate(Matrix& qkv, const PackedLayer& w);

  const io::ModelConfig& config_;
  ThreadPool& pool_;
  std::span<const int32_t> cu_seqlens_;
  const FloatDecoder::LayerOptions& options_;
};

// Norms of q and k heads where the model has them, then RoPE, in place.
void Backend::rotate(Matrix& qkv, const PackedLayer& w) {
  const int64_t half = config_.rotary_dim / 2, dim = config_.head_dim;
  for (size_t b = 0; b + 1 < cu_seqlens_.size(); ++b) {
    const int64_t begin = cu_seqlens_[b], length = cu_seqlens_[b + 1] - begin;
    const auto table = attention::make_rope_table(models::rope_params(config_), length, length);
    for_rows(pool_, length, [&](int64_t t) {
      const float *cos = table.cos.data() + t * half, *sin = table.sin.data() + t * half;
      for (int64_t h = 0; h < config_.heads + config_.kv_heads; ++h) {
        float* x = qkv.row(begin + t) + h * dim;
        const auto& norm = h < config_.heads ? w.q_norm : w.k_norm;
        if (!norm.empty()) rms_norm_row(x, norm, float(config_.rms_eps), dim, x);
        for (int64_t i = 0; i < half; ++i) {
          const float a = x[i], c = x[half + i];
          x[i] = a * cos[i] - c * sin[i];
          x[half + i] = c * cos[i] + a * sin[i];
        }
      }
    });
  }
}

Matrix Backend::attention(size_t, const PackedLayer& w, Matrix& qkv) {
  rotate(qkv, w);
  const int64_t heads = config_.heads, groups = config_.kv_heads, dim = config_.head_dim;
  Matrix out(qkv.rows, heads * dim);
  std::vector<float> lse(size_t(heads * qkv.rows));
  attention::VarlenForwardArgs args;
  args.shape.cu_seqlens_q = args.shape.cu_seqlens_k = cu_seqlens_.data();
  args.shape.batch = int64_t(cu_seqlens_.size()) - 1;
  args.shape.heads = heads;
  args.shape.kv_heads = groups;
  args.shape.head_dim = dim;
  args.shape.scale = 1.0 / std::sqrt(double(dim));
  args.q = {qkv.values.data(), qkv.width, dim};
  args.k = {qkv.values.data() + heads * dim, qkv.width, dim};
  args.v = {qkv.values.data() + (heads + groups) * dim, qkv.width, dim};
  args.out = {out.values.data(), out.width, dim};
  args.lse = lse.data();
  args.lse_stride = qkv.rows;
  const attention::VarlenForward forward(args);
  const auto scratch_bytes = size_t(round_up(forward.scratch_bytes(), 64));
  AlignedBuffer scratch(scratch_bytes * size_t(pool_.size()));
  pool_.run([&](Team& team) {
    team.dynamic_for(forward.items(), 1, [&](int64_t item, int64_t) {
      forward.run(item, scratch.data() + scratch_bytes * size_t(team.rank()));
    });
  });
  if (options_.attention != nullptr) options_.attention->attends(cu_seqlens_, qkv, out);
  return out;
}

}  // namespace

void round_activations(Matrix& x, const nvfp4::Recipe& recipe, ThreadPool& pool) {
  const int64_t k = x.width;
  std::vector<uint8_t> codes(size_t(x.rows * k / 2)), scales(size_t(x.rows * k / nvfp4::kBlock));
  std::vector<float> amax(size_t(x.rows)), multiplier(size_t(x.rows));
  nvfp4::QuantizeArgs args;
  args.source = {x.values.data(), DType::kF32, x.rows, k, k, false};
  args.amax = amax.data();
  args.amax_per_row = true;
  args.recipe = recipe;
  args.codes = codes.data();
  args.scales = scales.data();
  const nvfp4::DequantizeArgs back = {codes.data(), scales.data(),  multiplier.data(),
                                      true,         x.rows,         k,
                                      DType::kF32,  x.values.data()};
  pool.run([&](Team& team) {
    team.dynamic_for(x.rows, kGrain, [&](int64_t begin, int64_t end) {
      nvfp4::max_magnitude(args.source, recipe.hadamard, begin, end, amax.data() + begin);
      for (int64_t row = begin; row < end; ++row)
        multiplier[size_t(row)] = nvfp4::tensor_scale(amax[size_t(row)], recipe);
      nvfp4::quantize(args, begin, end);
      nvfp4::dequantize(back, begin, end);
    });
  });
}

FloatDecoder::FloatDecoder(const io::ModelConfig& config,
                           const models::DecoderTensors& tensors,
                           ThreadPool& pool)
    : config_(config),
      tensors_(tensors),
      pool_(pool),
      final_norm_(models::read_vector(tensors.final_norm)) {}

int64_t FloatDecoder::max_window() const {
  int64_t longest = io::default_context(config_);
  for (const int64_t window : config_.sliding_window)
    if (window > 0) longest = std::min(longest, window);
  return longest;
}

FloatDecoder::Batch FloatDecoder::embed(std::span<const std::vector<int32_t>> windows) const {
  Batch batch;
  batch.cu_seqlens.push_back(0);
  std::vector<int32_t> tokens;
  for (const std::vector<int32_t>& window : windows) {
    require(!window.empty() && int64_t(window.size()) <= max_window(), "window: found ",
            window.size(), " tokens, expected 1 to ", max_window());
    tokens.insert(tokens.end(), window.begin(), window.end());
    batch.cu_seqlens.push_back(int32_t(tokens.size()));
  }
  for (const int32_t token : tokens) {
    require(token >= 0 && token < config_.vocab, "token: found ", token, ", expected 0 to ",
            config_.vocab - 1);
  }
  batch.hidden = Matrix(int64_t(tokens.size()), config_.hidden);
  const models::Rows rows = models::read_rows(tensors_.embedding, DType::kF32);
  for (size_t t = 0; t < tokens.size(); ++t) {
    std::memcpy(batch.hidden.row(int64_t(t)),
                rows.data + int64_t(tokens[t]) * config_.hidden * int64_t(sizeof(float)),
                size_t(config_.hidden) * sizeof(float));
  }
  return batch;
}

void FloatDecoder::run_layer(size_t index,
                             const PackedLayer& layer,
                             Batch& batch,
                             const LayerOptions& options) const {
  Backend backend(config_, pool_, batch.cu_seqlens, options);
  batch.hidden =
      models::decoder_layer(backend, index, layer, std::move(batch.hidden), /*last=*/false);
}

void FloatDecoder::load_head() const {
  const models::TensorSource& source = tensors_.head ? tensors_.head : tensors_.embedding;
  const models::Rows rows = models::read_rows(source, DType::kF32);
  const qgemm::WeightRows part = {rows.dtype, rows.data, rows.n, rows.k};
  head_ = qgemm::pack({&part, 1}, pool_);
}

Matrix FloatDecoder::logits(const Batch& batch, int64_t begin, int64_t rows) const {
  if (!head_) load_head();
  Matrix x(rows, config_.hidden), y(rows, config_.vocab);
  for_rows(pool_, rows, [&](int64_t t) {
    rms_norm_row(batch.hidden.row(begin + t), final_norm_, float(config_.rms_eps), x.width,
                 x.row(t));
  });
  qgemm::MatmulArgs args;
  args.x = x.values.data();
  args.t = rows;
  args.ldx = x.width;
  args.y = y.values.data();
  args.ldy = y.width;
  qgemm::matmul(pool_, *head_, args);
  return y;
}

}  // namespace longspur::quant

#include "runtime/cpu_backend.h"

#include <chrono>
#include <cmath>
#include <cstring>

#include "base/shape.h"

namespace longspur::runtime {

namespace attention = kernels::attention;
namespace qgemm = kernels::qgemm;

namespace {

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

CpuBackend::Act CpuBackend::embed(const CpuLinear& embedding) {
  const auto tokens = step_.batch->tokens;
  const Act hidden{step_.hidden, int64_t(tokens.size()), step_.shape->hidden};
  team_.dynamic_for(hidden.rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      embedding.parts[0]->dequantize_row(tokens[size_t(t)], hidden.data + t * hidden.width);
    }
  });
  return hidden;
}

void CpuBackend::product(const CpuLinear& weight, const Operand& x, const Act& y, bool accumulate) {
  if (x.act.rows == 0) return;
  int64_t offset = 0;
  for (const auto& part : weight.parts) {
    qgemm::MatmulArgs args;
    args.x = x.act.data;
    args.t = x.act.rows;
    args.ldx = x.act.width;
    args.input = x.input;
    args.norm_weight = x.norm != nullptr ? x.norm->data() : nullptr;
    args.eps = step_.shape->rms_eps;
    args.y = y.data + offset;
    args.ldy = y.width;
    args.accumulate = accumulate;
    args.bias = weight.bias.empty() ? nullptr : weight.bias.data() + offset;
    args.precision = step_.precision;
    args.act_rule = step_.act_rule;
    qgemm::matmul(team_, *part, args, step_.matmul_workspace);
    offset += part->n();
  }
}

CpuBackend::Act CpuBackend::linear(const CpuLinear& weight, const Operand& x) {
  const Act y{step_.wide, x.act.rows, weight.n};
  product(weight, x, y, false);
  return y;
}

CpuBackend::Act CpuBackend::logits(const CpuLinear& weight, const Operand& x) {
  const Act y{step_.logits, x.act.rows, weight.n};
  product(weight, x, y, false);
  return y;
}

CpuBackend::Act CpuBackend::add_linear(const Act& residual,
                                       const CpuLinear& weight,
                                       const Operand& x) {
  product(weight, x, residual, true);
  return residual;
}

void CpuBackend::append(const attention::RopeAppendArgs& args, const attention::PagedKv& kv) {
  const ForwardBatch& batch = *step_.batch;
  if (step_.sequence_rope == nullptr) {
    attention::rope_append(
        team_, args, {int64_t(batch.kv_lens.size()), batch.cu_seqlens.data(), batch.kv_lens.data()},
        kv);
    return;
  }
  for (size_t b = 0; b < batch.kv_lens.size(); ++b) {
    attention::RopeAppendArgs one = args;
    one.cos = (*step_.sequence_rope)[2 * b].data();
    one.sin = (*step_.sequence_rope)[2 * b + 1].data();
    one.qkv = args.qkv + batch.cu_seqlens[b] * args.ld;
    const int32_t rows[2] = {0, batch.cu_seqlens[b + 1] - batch.cu_seqlens[b]};
    attention::PagedKv own = kv;
    own.block_table = kv.block_table + int64_t(b) * kv.kv_heads * kv.max_blocks;
    attention::rope_append(team_, one, {1, rows, &batch.kv_lens[b]}, own);
  }
}

CpuBackend::Act CpuBackend::attention(std::size_t layer, const CpuLayer& weights, const Act& qkv) {
  const CpuModelShape& shape = *step_.shape;
  const ForwardBatch& batch = *step_.batch;
  const int64_t sequences = int64_t(batch.kv_lens.size());
  attention::PagedKv kv;
  kv.type = step_.kv_type;
  kv.head_dim = shape.head_dim;
  kv.kv_heads = shape.kv_heads;
  kv.pool = step_.pool;
  kv.block_table =
      batch.block_table.data() + int64_t(layer) * sequences * shape.kv_heads * batch.max_blocks;
  kv.max_blocks = batch.max_blocks;

  attention::RopeAppendArgs rope;
  rope.qkv = qkv.data;
  rope.ld = qkv.width;
  rope.heads = shape.heads;
  rope.cos = step_.rope_cos;
  rope.sin = step_.rope_sin;
  rope.rotary_dim = shape.rotary_dim;
  rope.q_norm = weights.q_norm.empty() ? nullptr : weights.q_norm.data();
  rope.k_norm = weights.k_norm.empty() ? nullptr : weights.k_norm.data();
  rope.norm_eps = shape.rms_eps;
  append(rope, kv);

  const double start = now_s();
  const Act out{step_.attended, qkv.rows, shape.heads * shape.head_dim};
  attention::AttentionArgs args;
  args.q = qkv.data;
  args.ldq = qkv.width;
  args.out = out.data;
  args.ldo = out.width;
  args.heads = shape.heads;
  args.scale = 1.0f / std::sqrt(float(shape.head_dim));
  args.window = shape.window[layer];
  const attention::PagedMask* mask = nullptr;
  if (step_.xattention != nullptr) {
    const CpuXattention::Layer own{int64_t(layer), args.q, args.ldq, args.scale};
    mask = step_.xattention->select(team_, own, batch, kv);
  }
  attention::paged_attention(team_, args,
                             {sequences, batch.cu_seqlens.data(), batch.kv_lens.data()}, kv,
                             step_.attention_workspace, mask);
  if (team_.rank() == 0) *step_.attention_s += now_s() - start;
  return out;
}

CpuBackend::Act CpuBackend::outputs(const Act& x) {
  const auto rows = step_.batch->output_rows;
  if (int64_t(rows.size()) == x.rows) return x;
  // Rows rise, so each moves towards the front over rows that were moved or dropped before it.
  if (team_.rank() == 0) {
    for (size_t i = 0; i < rows.size(); ++i) {
      if (int64_t(i) == rows[i]) continue;
      std::memcpy(x.data + int64_t(i) * x.width, x.data + rows[i] * x.width,
                  size_t(x.width) * sizeof(float));
    }
  }
  team_.barrier();
  return {x.data, int64_t(rows.size()), x.width};
}

}  // namespace longspur::runtime

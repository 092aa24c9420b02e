// Scores over packed sequences: keys are brought into blocks once, then every query block of a KV
// head is an item.
#include <algorithm>
#include <cstring>

#include "base/shape.h"
#include "kernels/attention/tile.h"
#include "kernels/xattn/api.h"
#include "kernels/xattn/score_item.h"

namespace longspur::kernels::xattn {

namespace {

using attention::kBlockKeys;
using attention::padded_dim;

// Keys of an item of phase 0: whole blocks of every kind.
constexpr int64_t kPackedKeys = 64 * kBlockKeys;

int64_t length(const int32_t* begins, int64_t b) { return begins[b + 1] - begins[b]; }

ScoreSetup setup_of(const ScoreArgs& args) {
  return {args.estimator,    args.block_size,     args.shape.scale,
          args.shape.causal, args.shape.head_dim, args.shape.dtype == DType::kBF16};
}

// The keys of one sequence and KV head on their way into blocks.
class KeyPacker {
 public:
  KeyPacker(const ScoreArgs& args, int64_t b, int64_t kv_head, std::byte* scratch)
      : args_(args),
        setup_(setup_of(args)),
        begin_(args.shape.cu_seqlens_k[b]),
        m_(length(args.shape.cu_seqlens_k, b)),
        kv_head_(kv_head),
        row_(reinterpret_cast<float*>(scratch)),
        words_(reinterpret_cast<uint32_t*>(scratch) + padded_dim(args.shape.head_dim)) {}

  static int64_t scratch_bytes(int64_t d) { return 2 * padded_dim(d) * int64_t(sizeof(float)); }

  // Block j of columns of `size` keys: [size * words, 64].
  void pack(int64_t size, int64_t j, uint32_t* to) const {
    const int64_t words = setup_.words();
    for (int64_t column = 0; column < kBlockKeys; ++column) {
      for (int64_t i = 0; i < size; ++i) {
        const int64_t key = (j * kBlockKeys + column) * size + i;
        uint32_t* at = to + i * words * kBlockKeys + column;
        if (key < m_) {
          read(key);
          for (int64_t w = 0; w < words; ++w) at[w * kBlockKeys] = words_[w];
        } else {
          for (int64_t w = 0; w < words; ++w) at[w * kBlockKeys] = 0;
        }
      }
    }
  }

  // The mean of key block j into its column of [D, 64].
  void mean(int64_t j, float* to) const {
    const int64_t d = setup_.head_dim, first = j * setup_.block_size;
    const int64_t count = std::min(setup_.block_size, m_ - first);
    auto* __restrict sums = reinterpret_cast<float*>(words_);
    std::fill_n(sums, d, 0.0f);
    for (int64_t key = first; key < first + count; ++key) {
      load(key);
      for (int64_t i = 0; i < d; ++i) sums[i] += row_[i];
    }
    for (int64_t i = 0; i < d; ++i) to[i * kBlockKeys + j % kBlockKeys] = sums[i] / float(count);
  }

 private:
  void load(int64_t key) const {
    attention::active_table().scores.load(args_.k, args_.shape.dtype, begin_ + key, kv_head_, 1,
                                          setup_.head_dim, row_);
  }
  void read(int64_t key) const {
    if (!setup_.pairs) {
      load(key);
      std::memcpy(words_, row_, size_t(setup_.head_dim) * sizeof(float));
      return;
    }
    const int64_t at = (begin_ + key) * args_.k.token_stride + kv_head_ * args_.k.head_stride;
    words_[setup_.words() - 1] = 0;  // the second half of an odd last word
    std::memcpy(words_, static_cast<const uint16_t*>(args_.k.data) + at,
                size_t(setup_.head_dim) * sizeof(uint16_t));
  }

  const ScoreArgs& args_;
  ScoreSetup setup_;
  int64_t begin_, m_, kv_head_;
  float* row_;       // [padded_dim]
  uint32_t* words_;  // [padded_dim]
};

// The item of `local` items of each sequence that begins[b] .. begins[b + 1] counts.
int64_t sequence_of(const std::vector<int64_t>& begins, int64_t item) {
  return std::upper_bound(begins.begin(), begins.end(), item) - begins.begin() - 1;
}

}  // namespace

BlockScores::BlockScores(const ScoreArgs& args) : args_(args), pack_items_{0}, key_offsets_{0} {
  const attention::VarlenShape& shape = args_.shape;
  const ScoreSetup setup = setup_of(args_);
  for (int64_t b = 0; b < shape.batch; ++b) {
    const int64_t m = length(shape.cu_seqlens_k, b);
    longest_k_ = std::max(longest_k_, m);
    pack_items_.push_back(pack_items_.back() + ceil_div(m, kPackedKeys) * shape.kv_heads);
    key_offsets_.push_back(key_offsets_.back() + KeyLayout(setup, m, true).bytes * shape.kv_heads);
  }
}

int64_t BlockScores::items(int phase) const {
  return phase == 0 ? pack_items_.back()
                    : args_.shape.batch * args_.shape.kv_heads * args_.query_blocks;
}

int64_t BlockScores::scratch_bytes() const {
  return std::max(score_scratch_bytes(setup_of(args_), longest_k_),
                  KeyPacker::scratch_bytes(args_.shape.head_dim));
}

int64_t BlockScores::workspace_bytes() const { return key_offsets_.back(); }

void BlockScores::run(int phase, int64_t item, std::byte* scratch, std::byte* workspace) const {
  if (phase == 0)
    pack(item, scratch, workspace);
  else
    score(item, scratch, workspace);
}

void BlockScores::pack(int64_t item, std::byte* scratch, std::byte* workspace) const {
  const int64_t b = sequence_of(pack_items_, item), local = item - pack_items_[size_t(b)];
  const int64_t kv_head = local % args_.shape.kv_heads;
  const int64_t first = local / args_.shape.kv_heads * kPackedKeys;
  const int64_t m = length(args_.shape.cu_seqlens_k, b), end = std::min(m, first + kPackedKeys);
  const ScoreSetup setup = setup_of(args_);
  const KeyLayout layout(setup, m, true);
  std::byte* base = workspace + key_offsets_[size_t(b)] + kv_head * layout.bytes;
  const KeyPacker packer(args_, b, kv_head, scratch);
  const auto pack_all = [&](int64_t size, std::byte* to) {
    for (int64_t j = first / size / kBlockKeys; j * kBlockKeys * size < end; ++j)
      packer.pack(size, j, reinterpret_cast<uint32_t*>(to + j * size * layout.exact_bytes));
  };
  if (layout.has_exact) pack_all(1, base);
  for (size_t t = 0; t < setup.estimator.terms.size(); ++t) {
    if (layout.owns_keys(t)) pack_all(setup.estimator.terms[t].size, base + layout.strided[t]);
  }
  for (int64_t j = first / setup.block_size; layout.has_means && j * setup.block_size < end; ++j) {
    packer.mean(j,
                reinterpret_cast<float*>(base + layout.means + j / kBlockKeys * layout.mean_bytes));
  }
}

void BlockScores::score(int64_t item, std::byte* scratch, std::byte* workspace) const {
  const attention::VarlenShape& shape = args_.shape;
  // Late blocks see the most keys: they go first, so that no thread is left with a long one.
  const int64_t i = args_.query_blocks - 1 - item / (shape.batch * shape.kv_heads);
  const int64_t b = item / shape.kv_heads % shape.batch, kv_head = item % shape.kv_heads;
  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t rows = group * args_.score_heads / shape.heads;  // of scores
  const int64_t head_size = args_.query_blocks * args_.key_blocks;
  float* out =
      args_.scores + (b * args_.score_heads + kv_head * rows) * head_size + i * args_.key_blocks;
  for (int64_t r = 0; r < rows; ++r) std::fill_n(out + r * head_size, args_.key_blocks, 0.0f);

  const int64_t n = length(shape.cu_seqlens_q, b), m = length(shape.cu_seqlens_k, b);
  if (i * kQueryBlock >= n) return;
  const ScoreSetup setup = setup_of(args_);
  const KeyLayout layout(setup, m, true);
  const std::byte* base = workspace + key_offsets_[size_t(b)] + kv_head * layout.bytes;
  ScoreItem work;
  work.q = args_.q;
  work.q_type = shape.dtype;
  work.q_begin = shape.cu_seqlens_q[b];
  work.n = n;
  work.offset = m - n;
  work.m = m;
  work.block = i;
  work.first_head = kv_head * group;
  work.heads = group;
  work.exact = {base, layout.exact_bytes};
  layout.place(setup, base, work);
  work.out = out;
  work.out_stride = rows == 1 ? 0 : head_size;
  work.factor = 1.0f / float(group / rows);
  if (args_.row_lse != nullptr)
    work.row_lse = args_.row_lse + work.q_begin * args_.lse_stride + work.first_head;
  work.lse_stride = args_.lse_stride;
  score_item(setup, work, longest_k_, scratch);
}

}  // namespace longspur::kernels::xattn

// The attention of one layer on recorded heads: scores of key blocks, true masses, and the output
// under a mask, with the kernels of inference on a copy in bf16 (whose rounding is far below what
// selection changes). What calibration of thresholds and the study of estimators measure with.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention/varlen.h"
#include "kernels/common/block_mask.h"
#include "kernels/xattn/estimator.h"
#include "quant/float_decoder.h"

namespace longspur::quant {

class LayerAttention {
 public:
  // As an AttentionObserver sees them; cu_seqlens is borrowed. Masks for `mask_heads`: H or G.
  LayerAttention(const io::ModelConfig& config,
                 ThreadPool& pool,
                 std::span<const int32_t> cu_seqlens,
                 const Matrix& qkv,
                 int64_t block_size,
                 int64_t mask_heads);

  int64_t sequences() const { return int64_t(cu_seqlens_.size()) - 1; }
  int64_t tokens(int64_t b) const { return cu_seqlens_[size_t(b + 1)] - cu_seqlens_[size_t(b)]; }
  int64_t mask_heads() const { return mask_heads_; }
  int64_t query_blocks() const { return query_blocks_; }  // of the longest sequence
  int64_t key_blocks() const { return key_blocks_; }
  int64_t row_words() const { return row_words_; }
  size_t rows() const { return size_t(sequences() * mask_heads_ * query_blocks_); }
  size_t row(int64_t b, int64_t head, int64_t i) const {
    return size_t((b * mask_heads_ + head) * query_blocks_ + i);
  }

  // [rows, key blocks]: the estimator's scores, and what exact softmax gives each block.
  std::vector<float> scores(const kernels::xattn::Estimator& estimator) const;
  std::vector<float> masses() const;

  // For each mask head sum |o - dense| / sum |dense|, o under the mask `words` [rows, row words],
  // from row first_rows[b] of each sequence on. dense: [T, H D]
  std::vector<double> errors(const std::vector<uint32_t>& words,
                             const Matrix& dense,
                             std::span<const int64_t> first_rows) const;

 private:
  kernels::attention::VarlenShape shape() const;
  kernels::attention::ConstRows rows_at(int64_t head) const;

  const io::ModelConfig& config_;
  ThreadPool& pool_;
  std::span<const int32_t> cu_seqlens_;
  std::vector<uint16_t> halves_;  // qkv
  int64_t width_, block_size_, mask_heads_, query_blocks_, key_blocks_, row_words_;
};

// Of one row: the share of its masses that the listed blocks hold; 1 where it has none.
double listed_share(const float* masses, const uint32_t* words, int64_t key_blocks);

}  // namespace longspur::quant

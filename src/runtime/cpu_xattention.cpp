#include "runtime/cpu_xattention.h"

#include <algorithm>

#include "base/error.h"
#include "base/shape.h"

namespace longspur::runtime {

namespace attention = kernels::attention;
namespace xattn = kernels::xattn;

namespace {

constexpr int64_t kBlock = kernels::kQueryBlock;

void reserve(AlignedBuffer& buffer, int64_t bytes) {
  if (bytes <= int64_t(buffer.size())) return;
  buffer = AlignedBuffer();  // the old one goes first: they need not live together
  buffer = AlignedBuffer(size_t(bytes));
}

// Cache of sequence b alone.
attention::PagedKv cache_of(const attention::PagedKv& kv, int64_t b) {
  attention::PagedKv own = kv;
  own.block_table = kv.block_table + b * kv.kv_heads * kv.max_blocks;
  return own;
}

}  // namespace

CpuXattention::CpuXattention(const XattentionPlan& plan,
                             const io::ModelConfig& config,
                             int64_t max_context)
    : policy_(plan, config),
      heads_(config.heads),
      head_dim_(config.head_dim),
      needs_means_(policy_.needs_key_means(max_context)) {
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const std::vector<float> row = policy_.thresholds(layer, ForwardBatch::kPlanThreshold);
    plan_thresholds_.insert(plan_thresholds_.end(), row.begin(), row.end());
  }
}

int64_t CpuXattention::page_bytes() const {
  return needs_means_ ? head_dim_ * int64_t(sizeof(float)) : 0;
}

void CpuXattention::allocate_pages(int64_t pages) {
  means_ = AlignedBuffer(size_t(pages * page_bytes()));
}

void CpuXattention::add_sequence(const ForwardBatch& batch, int64_t b) {
  if (!policy_.is_sparse(batch, b)) return;
  const auto index = size_t(b);
  const int64_t rows = batch.cu_seqlens[index + 1] - batch.cu_seqlens[index],
                end = batch.kv_lens[index], prompt = batch.prompt_lens[index];
  Sparse sparse;
  sparse.blocks = policy_.sparse_blocks(prompt);
  sparse.first_block = (end - rows) / kBlock;
  sparse.query_blocks = ceil_div(end, kBlock) - sparse.first_block;
  const int64_t past_block = sparse.first_block + sparse.query_blocks;
  const bool meets = sparse.first_block < sparse.blocks.last && past_block > sparse.blocks.first;
  // Means of keys are made by selection, also where its result is not needed.
  if (!meets && (!needs_means_ || sparse.first_block >= sparse.blocks.last)) return;
  sparse.b = b;
  sparse.rows[1] = int32_t(rows);
  sparse.first_row = batch.cu_seqlens[index];
  sparse.estimator = policy_.estimator(prompt);
  if (batch.thresholds[index] >= 0)
    sparse.threshold = policy_.thresholds(0, batch.thresholds[index]);
  use_[index] = 1;
  overwrites_ =
      overwrites_ || sparse.first_block < sparse.blocks.first || past_block > sparse.blocks.last;
  sparse_.push_back(std::move(sparse));
}

void CpuXattention::prepare(const ForwardBatch& batch, const attention::PagedKv& kv, int threads) {
  const auto sequences = int64_t(batch.kv_lens.size());
  use_.assign(size_t(sequences), 0);
  sparse_.clear();
  overwrites_ = false;
  for (int64_t b = 0; b < sequences; ++b) add_sequence(batch, b);
  if (sparse_.empty()) return;

  const attention::BatchShape shape{sequences, batch.cu_seqlens.data(), batch.kv_lens.data()};
  const int64_t longest = *std::max_element(batch.kv_lens.begin(), batch.kv_lens.end());
  kernels::BlockMask& blocks = mask_.blocks;
  blocks.block_size = policy_.plan().select.block_size;
  blocks.heads = policy_.mask_heads();
  blocks.query_blocks = xattn::paged_query_blocks(shape);
  blocks.row_words = kernels::BlockMask::words_of(ceil_div(longest, blocks.block_size));
  mask_.use = use_.data();
  mask_.mean_correction = policy_.plan().mean_correction;
  const int64_t rows = sequences * blocks.heads * blocks.query_blocks;
  rows_.resize(size_t(rows));
  reselected_.resize(size_t(rows));
  reserve(words_, rows * blocks.row_words * int64_t(sizeof(uint32_t)));
  blocks.words = words_.as<uint32_t>();
  int64_t bytes = 0;
  for (const Sparse& sparse : sparse_) {
    const attention::BatchShape one{1, sparse.rows, &batch.kv_lens[size_t(sparse.b)]};
    bytes = std::max(bytes, xattn::paged_select_workspace_bytes(arguments(sparse, {}), one,
                                                                cache_of(kv, sparse.b), threads));
  }
  reserve(workspace_, bytes);
}

bool CpuXattention::is_dense(int64_t layer) const {
  if (sparse_.empty() || !policy_.is_sparse_layer(layer)) return true;
  const int64_t heads = policy_.mask_heads();
  const float* plan = plan_thresholds_.data() + layer * heads;
  // A request's own threshold is below 1, or its prompt would not be here.
  const bool own = std::any_of(sparse_.begin(), sparse_.end(),
                               [](const Sparse& sparse) { return !sparse.threshold.empty(); });
  return !own && std::all_of(plan, plan + heads, [](float value) { return value >= 1; });
}

xattn::PagedSelectArgs CpuXattention::arguments(const Sparse& sparse, const Layer& layer) {
  const kernels::BlockMask& blocks = mask_.blocks;
  xattn::PagedSelectArgs args;
  args.q = layer.q + sparse.first_row * layer.ldq;
  args.ldq = layer.ldq;
  args.heads = heads_;
  args.scale = layer.scale;
  args.estimator = sparse.estimator;
  args.threshold = sparse.threshold.empty()
                       ? plan_thresholds_.data() + layer.index * policy_.mask_heads()
                       : sparse.threshold.data();
  args.options = policy_.plan().select;
  args.mask_heads = policy_.mask_heads();
  const int64_t first = sparse.b * blocks.heads * blocks.query_blocks;
  args.words = words_.as<uint32_t>() + first * blocks.row_words;
  args.query_blocks = blocks.query_blocks;
  args.row_words = blocks.row_words;
  args.least_share = policy_.plan().least_share;
  args.stats = rows_.data() + first;
  args.reselected = reselected_.data() + first;
  args.key_means.means = needs_means_ ? means_.as<float>() : nullptr;
  return args;
}

const attention::PagedMask* CpuXattention::select(Team& team,
                                                  const Layer& layer,
                                                  const ForwardBatch& batch,
                                                  const attention::PagedKv& kv) {
  const bool dense = is_dense(layer.index);
  if (team.rank() == 0 && policy_.is_sparse_layer(layer.index)) count_dense(batch, dense);
  if (dense) return nullptr;
  for (const Sparse& sparse : sparse_) {
    const xattn::PagedSelectArgs args = arguments(sparse, layer);
    const attention::BatchShape one{1, sparse.rows, &batch.kv_lens[size_t(sparse.b)]};
    const attention::PagedKv own = cache_of(kv, sparse.b);
    xattn::paged_select(team, args, one, own, workspace_.data());
  }
  if (team.rank() == 0)
    for (const Sparse& sparse : sparse_) finish(sparse, batch);
  if (overwrites_) team.barrier();
  return &mask_;
}

bool CpuXattention::may_be_sparse(const Sparse& sparse, int64_t i) {
  const int64_t block = sparse.first_block + i;
  return block >= sparse.blocks.first && block < sparse.blocks.last;
}

void CpuXattention::finish(const Sparse& sparse, const ForwardBatch& batch) {
  const kernels::BlockMask& blocks = mask_.blocks;
  for (int64_t head = 0; head < blocks.heads; ++head) {
    for (int64_t i = 0; i < sparse.query_blocks; ++i) {
      const int64_t row = (sparse.b * blocks.heads + head) * blocks.query_blocks + i;
      if (!may_be_sparse(sparse, i)) {
        std::fill_n(words_.as<uint32_t>() + row * blocks.row_words, blocks.row_words, ~uint32_t(0));
        continue;
      }
      const xattn::RowStats& stats = rows_[size_t(row)];
      ++stats_.blocks;
      stats_.guarded_blocks += reselected_[size_t(row)];
      stats_.visible_keys += stats.visible;
      stats_.kept_keys += stats.kept;
      stats_.kept_share_sum += double(stats.kept_share);
      stats_.min_kept_share = std::min(stats_.min_kept_share, double(stats.kept_share));
    }
  }
  count_dense_blocks(batch, sparse.b, sparse.first_block,
                     std::min(sparse.blocks.first, sparse.first_block + sparse.query_blocks));
  count_dense_blocks(batch, sparse.b, std::max(sparse.blocks.last, sparse.first_block),
                     sparse.first_block + sparse.query_blocks);
}

void CpuXattention::count_dense(const ForwardBatch& batch, bool all) {
  for (int64_t b = 0; b < int64_t(batch.kv_lens.size()); ++b) {
    const auto index = size_t(b);
    if (!batch.is_prompt(b) || (!all && use_[index] != 0)) continue;
    const int64_t rows = batch.cu_seqlens[index + 1] - batch.cu_seqlens[index];
    count_dense_blocks(batch, b, (batch.kv_lens[index] - rows) / kBlock,
                       ceil_div(int64_t(batch.kv_lens[index]), kBlock));
  }
}

void CpuXattention::count_dense_blocks(const ForwardBatch& batch,
                                       int64_t b,
                                       int64_t first,
                                       int64_t last) {
  const int64_t heads = policy_.mask_heads(), block_size = policy_.plan().select.block_size,
                end = batch.kv_lens[size_t(b)];
  for (int64_t block = first; block < last; ++block) {
    const int64_t keys = ceil_div(std::min(end, (block + 1) * kBlock), block_size);
    stats_.blocks += heads;
    stats_.dense_blocks += heads;
    stats_.visible_keys += heads * keys;
    stats_.kept_keys += heads * keys;
  }
}

}  // namespace longspur::runtime

#include "kernels/attention/varlen.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "base/shape.h"
#include "kernels/attention/tile.h"

namespace longspur::kernels::attention {

namespace {

constexpr int64_t kAlign = 64;
// A tile's packed queries and outputs take about half of a megabyte of second-level cache; blocks
// of keys are packed once a tile, so fewer rows would pack more often.
constexpr int64_t kTileElements = 36'864, kMostTileRows = 6 * kMaxRows;
constexpr int64_t kRowPiece = 256;  // query rows of an item of the backward's first and last phase
// Key slices times KV heads of one sequence: enough for a dozen threads. Each slice of a sequence
// costs a copy of dq, so long sequences get fewer: kMostPartials floats.
constexpr int64_t kMainItems = 16, kMostPartials = int64_t{1} << 28;

int64_t length(const int32_t* begins, int64_t b) { return begins[b + 1] - begins[b]; }

// begins[b] <= item < begins[b + 1]
int64_t sequence_of(const std::vector<int64_t>& begins, int64_t item) {
  return std::upper_bound(begins.begin(), begins.end(), item) - begins.begin() - 1;
}

// Hands out aligned parts of a buffer; with a null base it only counts.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}
  float* floats(int64_t n) {
    std::byte* part = base_ == nullptr ? nullptr : base_ + used_;
    used_ += round_up(n * int64_t(sizeof(float)), kAlign);
    return reinterpret_cast<float*>(part);
  }
  int64_t used() const { return used_; }

 private:
  std::byte* base_;
  int64_t used_ = 0;
};

VarlenForwardScratch forward_scratch(Carver& carver, int64_t d, int64_t rows) {
  const int64_t dp = padded_dim(d);
  VarlenForwardScratch scratch{};
  scratch.q = carver.floats(rows * d);
  scratch.o = carver.floats(rows * dp);
  scratch.state = carver.floats(rows * 2);
  scratch.keys = carver.floats(d * kBlockKeys);
  scratch.values = carver.floats(kBlockKeys * dp);
  scratch.s = carver.floats(kMaxRows * kBlockKeys);
  scratch.p = carver.floats(kMaxRows * kBlockKeys);
  scratch.row = carver.floats(2 * dp);
  return scratch;
}

VarlenBackwardScratch backward_scratch(Carver& carver, int64_t d) {
  const int64_t dp = padded_dim(d);
  VarlenBackwardScratch scratch{};
  scratch.q = carver.floats(kGradientRows * dp);
  scratch.grad_out = carver.floats(kGradientRows * dp);
  scratch.keys_t = carver.floats(d * kBlockKeys);
  scratch.values_t = carver.floats(d * kBlockKeys);
  scratch.keys = carver.floats(kBlockKeys * dp);
  scratch.dk = carver.floats(kBlockKeys * dp);
  scratch.dv = carver.floats(kBlockKeys * dp);
  scratch.p = carver.floats(kGradientRows * kBlockKeys);
  scratch.ds = carver.floats(kGradientRows * kBlockKeys);
  scratch.row = carver.floats(2 * dp);
  return scratch;
}

}  // namespace

// --- forward ---

VarlenForward::VarlenForward(const VarlenForwardArgs& args, const BlockMask& mask)
    : args_(args), mask_(mask), item_begins_{0} {
  const VarlenShape& shape = args_.shape;
  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t rows = std::clamp(kTileElements / shape.head_dim / kMaxRows * kMaxRows,
                                  int64_t{kMaxRows}, kMostTileRows);
  heads_a_tile_ = std::min(group, rows);
  tokens_a_tile_ = rows / heads_a_tile_;
  if (mask_.words != nullptr) {
    // Rows of a tile share a row of the mask: one query block, heads of one mask.
    heads_a_tile_ = std::min(heads_a_tile_, std::max<int64_t>(1, shape.heads / mask_.heads));
    const auto most = uint64_t(std::min(rows / heads_a_tile_, kQueryBlock));
    tokens_a_tile_ = int64_t(std::bit_floor(most));
  }
  for (int64_t b = 0; b < shape.batch; ++b) {
    const int64_t tiles = ceil_div(length(shape.cu_seqlens_q, b), tokens_a_tile_);
    item_begins_.push_back(items() + tiles * shape.kv_heads * ceil_div(group, heads_a_tile_));
  }
  if (mask_.words == nullptr) return;
  std::vector<int64_t> work;
  for (int64_t item = 0; item < items(); ++item) {
    const VarlenForwardTile tile = tile_of(item);
    const int64_t end = shape.causal ? tile.first_visible + tile.tokens - 1 : tile.keys;
    const int64_t blocks = ceil_div(std::clamp(end, int64_t{0}, tile.keys), mask_.block_size);
    work.push_back(tile.tokens * tile.heads * count_blocks(tile.listed, blocks));
  }
  order_.resize(work.size());
  std::iota(order_.begin(), order_.end(), 0);
  std::stable_sort(order_.begin(), order_.end(),
                   [&](int32_t a, int32_t b) { return work[size_t(a)] > work[size_t(b)]; });
}

int64_t VarlenForward::scratch_bytes() const {
  int64_t longest = 0;
  for (int64_t b = 0; b < args_.shape.batch; ++b)
    longest = std::max(longest, length(args_.shape.cu_seqlens_q, b));
  Carver carver(nullptr);
  forward_scratch(carver, args_.shape.head_dim, std::min(longest, tokens_a_tile_) * heads_a_tile_);
  return carver.used();
}

VarlenForwardTile VarlenForward::tile_of(int64_t item) const {
  const VarlenShape& shape = args_.shape;
  const int64_t b = sequence_of(item_begins_, item);
  const int64_t queries = length(shape.cu_seqlens_q, b);
  const int64_t group = shape.heads / shape.kv_heads, chunks = ceil_div(group, heads_a_tile_);
  const int64_t local = item - item_begins_[size_t(b)], head_pieces = shape.kv_heads * chunks;
  // Late tiles see the most keys: they go first, so that no thread is left with a long one.
  const int64_t index = ceil_div(queries, tokens_a_tile_) - 1 - local / head_pieces;
  const int64_t first = index * tokens_a_tile_, chunk = local % chunks;

  VarlenForwardTile tile{};
  tile.args = &args_;
  tile.q_begin = shape.cu_seqlens_q[b] + first;
  tile.tokens = std::min(tokens_a_tile_, queries - first);
  tile.k_begin = shape.cu_seqlens_k[b];
  tile.keys = length(shape.cu_seqlens_k, b);
  tile.kv_head = local % head_pieces / chunks;
  tile.first_head = tile.kv_head * group + chunk * heads_a_tile_;
  tile.heads = std::min(heads_a_tile_, group - chunk * heads_a_tile_);
  tile.first_visible = tile.keys - queries + first + 1;
  if (mask_.words != nullptr) {
    tile.listed = mask_.row(b, tile.first_head * mask_.heads / shape.heads, first / kQueryBlock);
    tile.keys_a_bit = mask_.block_size;
  }
  return tile;
}

void VarlenForward::run(int64_t item, std::byte* scratch) const {
  const VarlenShape& shape = args_.shape;
  const VarlenForwardTile tile = tile_of(order_.empty() ? item : order_[size_t(item)]);
  Carver carver(scratch);
  const VarlenTable& table = active_table().varlen;
  (shape.dtype == DType::kBF16 ? table.forward_bf16 : table.forward)(
      tile, forward_scratch(carver, shape.head_dim, tile.tokens * tile.heads));
}

// --- backward ---

VarlenBackward::VarlenBackward(const VarlenBackwardArgs& args, const BlockMask& mask)
    : args_(args), mask_(mask), row_items_{0}, main_items_{0}, partial_offsets_{0} {
  const VarlenShape& shape = args_.shape;
  const int64_t dp = padded_dim(shape.head_dim);
  for (int64_t b = 0; b < shape.batch; ++b) {
    row_items_.push_back(row_items_.back() + ceil_div(queries(b), kRowPiece) * shape.heads);
    main_items_.push_back(main_items_.back() + slices(b) * shape.kv_heads);
    partial_offsets_.push_back(partial_offsets_.back() + slices(b) * queries(b) * shape.heads * dp);
  }
}

int64_t VarlenBackward::queries(int64_t b) const { return length(args_.shape.cu_seqlens_q, b); }
int64_t VarlenBackward::keys(int64_t b) const { return length(args_.shape.cu_seqlens_k, b); }

int64_t VarlenBackward::slices(int64_t b) const {
  const VarlenShape& shape = args_.shape;
  const int64_t floats =
      std::max<int64_t>(1, queries(b) * shape.heads * padded_dim(shape.head_dim));
  const int64_t wanted =
      std::min(ceil_div(kMainItems, shape.kv_heads), std::max<int64_t>(1, kMostPartials / floats));
  return std::min(wanted, ceil_div(keys(b), kBlockKeys));
}

int64_t VarlenBackward::items(int phase) const {
  return phase == 1 ? main_items_.back() : row_items_.back();
}

int64_t VarlenBackward::scratch_bytes() const {
  Carver carver(nullptr);
  backward_scratch(carver, args_.shape.head_dim);
  return carver.used();
}

// Row sums [H, Tq], then for each sequence partial dq [slices, H, N, padded_dim].
int64_t VarlenBackward::workspace_bytes() const {
  Carver carver(nullptr);
  carver.floats(args_.shape.heads * args_.shape.cu_seqlens_q[args_.shape.batch]);
  carver.floats(partial_offsets_.back());
  return carver.used();
}

float* VarlenBackward::partial_dq(int64_t b, std::byte* workspace) const {
  Carver carver(workspace);
  carver.floats(args_.shape.heads * args_.shape.cu_seqlens_q[args_.shape.batch]);
  return carver.floats(partial_offsets_.back()) + partial_offsets_[size_t(b)];
}

void VarlenBackward::run(int phase, int64_t item, std::byte* scratch, std::byte* workspace) const {
  if (phase == 1) {
    run_main(item, scratch, workspace);
  } else if (phase == 0) {
    run_delta(item, reinterpret_cast<float*>(scratch), reinterpret_cast<float*>(workspace));
  } else {
    run_reduce(item, reinterpret_cast<float*>(scratch), workspace);
  }
}

void VarlenBackward::run_delta(int64_t item, float* row, float* delta) const {
  const int64_t b = sequence_of(row_items_, item), local = item - row_items_[size_t(b)];
  const int64_t first = local / args_.shape.heads * kRowPiece;
  active_table().varlen.delta({&args_, local % args_.shape.heads,
                               args_.shape.cu_seqlens_q[b] + first,
                               std::min(kRowPiece, queries(b) - first), delta, row});
}

void VarlenBackward::run_main(int64_t item, std::byte* scratch, std::byte* workspace) const {
  const VarlenShape& shape = args_.shape;
  const int64_t b = sequence_of(main_items_, item), local = item - main_items_[size_t(b)];
  const int64_t group = shape.heads / shape.kv_heads, slice = local / shape.kv_heads;
  VarlenBackwardTile tile{};
  tile.args = &args_;
  tile.q_begin = shape.cu_seqlens_q[b];
  tile.tokens = queries(b);
  tile.k_begin = shape.cu_seqlens_k[b];
  tile.keys = keys(b);
  tile.kv_head = local % shape.kv_heads;
  tile.first_head = tile.kv_head * group;
  tile.heads = group;
  tile.first_visible = tile.keys - tile.tokens + 1;
  // Slices are dealt like cards: under a causal mask late blocks have less to do.
  tile.first_block = slice;
  tile.block_step = slices(b);
  tile.mask = mask_.words == nullptr ? nullptr : &mask_;
  tile.sequence = b;
  tile.delta = reinterpret_cast<const float*>(workspace);
  tile.dq = partial_dq(b, workspace) +
            (slice * shape.heads + tile.first_head) * tile.tokens * padded_dim(shape.head_dim);
  Carver carver(scratch);
  active_table().varlen.backward(tile, backward_scratch(carver, shape.head_dim));
}

void VarlenBackward::run_reduce(int64_t item, float* row, std::byte* workspace) const {
  const VarlenShape& shape = args_.shape;
  const int64_t b = sequence_of(row_items_, item), local = item - row_items_[size_t(b)];
  const int64_t first = local / shape.heads * kRowPiece, head = local % shape.heads;
  const int64_t dp = padded_dim(shape.head_dim), n = queries(b);
  active_table().varlen.reduce(
      {&args_, head, shape.cu_seqlens_q[b] + first, std::min(kRowPiece, n - first),
       partial_dq(b, workspace) + (head * n + first) * dp, slices(b), shape.heads * n * dp, row});
}

}  // namespace longspur::kernels::attention

// Backward of block-sparse attention: which kernel, the workspace, the order of the launches.
#include <algorithm>

#include "kernels/block_sparse/cuda/backward_impl.h"
#include "kernels/common/cuda/tensor_map.h"

namespace longspur::kernels::block_sparse::cuda {

namespace {

// What a copy by tensor map and 16-byte vectors asks for; strides of single tokens or heads are
// never used.
template <class R>
bool aligned(const R& rows, int64_t tokens, int64_t heads) {
  const auto fits = [](int64_t stride, int64_t size) {
    return size == 1 || (stride > 0 && stride % 8 == 0);
  };
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && fits(rows.token_stride, tokens) &&
         fits(rows.head_stride, heads);
}

bool is_fast(const BackwardArgs& args) {
  const Shape& s = args.shape;
  if ((s.head_dim != 64 && s.head_dim != 128) || s.type == Type::kF32) return false;
  if (s.total_q < 1 || s.total_k < 1 || s.total_q >= (1 << 30) || s.total_k >= (1 << 30) ||
      s.heads * (s.total_q / kQueryBlock + s.batch) >= (1 << 29))
    return false;
  const auto query = [&](const auto& rows) { return aligned(rows, s.total_q, s.heads); };
  const auto key = [&](const auto& rows) { return aligned(rows, s.total_k, s.kv_heads); };
  return query(args.q) && query(args.out) && query(args.grad_out) && query(args.dq) &&
         key(args.k) && key(args.v) && key(args.dk) && key(args.dv) && encode_tiled() != nullptr;
}

// Hands out pieces of the workspace, or only adds them up when there is none yet.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<std::byte*>(base)) {}
  template <class T>
  void take(T*& pointer, int64_t count) {
    pointer = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + size_);
    size_ += round_up(count * int64_t(sizeof(T)), int64_t{256});
  }
  int64_t size() const { return size_; }

 private:
  std::byte* base_;
  int64_t size_ = 0;
};

CudaStatus check(const BackwardArgs& args) {
  const Shape& s = args.shape;
  if (s.head_dim < 1 || s.head_dim > 256)
    return "block-sparse backward: head dimension is not 1 to 256";
  if (s.kv_heads < 1 || s.heads % s.kv_heads != 0)
    return "block-sparse backward: query heads are not a multiple of KV heads";
  if (args.mask.words == nullptr) return nullptr;
  if (args.mask.block_size != 64 && args.mask.block_size != 128)
    return "block-sparse backward: block size is not 64 or 128";
  if (args.mask.heads != 1 && args.mask.heads != s.kv_heads && args.mask.heads != s.heads)
    return "block-sparse backward: heads of the mask are not 1, the KV heads or the query heads";
  return nullptr;
}

}  // namespace

int64_t make_params(const BackwardArgs& args, void* base, BackwardParams& p) {
  const Shape& s = args.shape;
  p = {};
  p.cu_q = s.cu_seqlens_q;
  p.cu_k = s.cu_seqlens_k;
  p.batch = int(s.batch);
  p.heads = int(s.heads);
  p.kv_heads = int(s.kv_heads);
  p.query_blocks = int(s.total_q / kQueryBlock + s.batch);
  p.key_blocks = int(s.total_k / kKeys + s.batch);
  p.causal = s.causal;
  p.deterministic = args.deterministic;
  p.scale = s.scale;
  p.mask = args.mask;
  if (args.mask.words == nullptr) p.mask.block_size = kKeys;
  p.mask_heads = args.mask.words == nullptr ? 1 : int(args.mask.heads);
  p.sub_blocks = kKeys / int(p.mask.block_size);
  p.query_words = int(ceil_div(s.max_seqlen_q, kQueryBlock * 32));
  p.key_words = int(ceil_div(s.max_seqlen_k, p.mask.block_size * 32));
  const int64_t columns = int64_t(p.kv_heads) * p.key_blocks, group = s.heads / s.kv_heads;
  const int64_t group_bytes = s.max_seqlen_q * s.head_dim * group * 8;  // 2 + 2 + 4 an element
  p.head_parts = !args.deterministic && group_bytes > kGroupBytes ? int(group) : 1;
  p.max_slots = args.deterministic
                    ? 0
                    : int(p.head_parts > 1 ? columns : std::min<int64_t>(columns, kWorkParts));

  const int64_t mask_columns = int64_t(p.mask_heads) * p.key_blocks;
  const int64_t rows = s.heads * p.query_blocks * kQueryBlock;
  const int64_t tiles = rows / queries_a_step(int(s.head_dim));
  Arena arena(base);
  arena.take(p.columns, mask_columns * p.sub_blocks * p.query_words);
  arena.take(p.counts, mask_columns);
  arena.take(p.items, columns * p.head_parts + kWorkParts);
  arena.take(p.slot_columns, p.max_slots);
  arena.take(p.control, 1);
  arena.take(p.stats, rows * 2);
  arena.take(p.dq, rows * s.head_dim);
  arena.take(p.turns, args.deterministic ? tiles * 2 : 0);
  arena.take(p.slots, p.max_slots * 2 * kKeys * s.head_dim);
  return arena.size();
}

int64_t backward_workspace_bytes(const BackwardArgs& args) {
  BackwardParams params;
  return check(args) == nullptr && is_fast(args) ? make_params(args, nullptr, params) : 0;
}

CudaStatus backward(const BackwardArgs& args, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  if (const CudaStatus status = check(args)) return status;
  if (!is_fast(args)) return backward_simple(args, stream);
  BackwardParams params;
  make_params(args, args.workspace, params);
  if (const CudaStatus status = prepare(args, params, stream)) return status;
  if (const CudaStatus status = accumulate(args, params, stream)) return status;
  return finish(args, params, stream);
}

}  // namespace longspur::kernels::block_sparse::cuda

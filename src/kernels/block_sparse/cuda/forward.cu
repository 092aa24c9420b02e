// Which kernel takes a forward call, and the fast one's parameters and maps.
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/block_sparse/cuda/block_sparse_cuda.h"
#include "kernels/block_sparse/cuda/forward_impl.h"
#include "kernels/block_sparse/cuda/forward_layout.cuh"
#include "kernels/common/cuda/tensor_map.h"

namespace longspur::kernels::block_sparse::cuda {

namespace {

constexpr int64_t kAlignment = 8;  // elements of 16 bits: 16 bytes
// Of keys and values that items under way at one time should share: a third of L2.
constexpr int64_t kSectionBytes = int64_t{16} << 20;

// A tensor as the tensor memory accelerator sees it. A stride along one element is anything.
struct MapShape {
  const void* data;
  int64_t tokens, heads, token_stride, head_stride;
};

bool aligned(
    const void* data, int64_t tokens, int64_t heads, int64_t token_stride, int64_t head_stride) {
  constexpr int64_t kMost = int64_t{1} << 38;
  const auto fits = [](int64_t count, int64_t stride) {
    return count <= 1 || (stride > 0 && stride < kMost && stride % kAlignment == 0);
  };
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && fits(tokens, token_stride) &&
         fits(heads, head_stride);
}

// Items are blocks of query rows of a head; those of sequences that end in the middle of one
// included.
int64_t most_items(const Shape& s) {
  return (ceil_div(s.total_q, int64_t{kQueryRows}) + s.batch) * s.heads;
}

bool make_map(const MapShape& t, const Shape& s, int rows, int halves, CUtensorMap& map) {
  const EncodeTiled encode = encode_tiled();
  if (encode == nullptr) return false;
  const auto bytes = [&](int64_t count, int64_t stride) {
    return cuuint64_t(count > 1 ? stride * 2 : s.head_dim * 2);
  };
  const cuuint64_t sizes[] = {64, cuuint64_t(t.tokens), cuuint64_t(s.head_dim / 64),
                              cuuint64_t(t.heads)};
  const cuuint64_t strides[] = {bytes(t.tokens, t.token_stride), kRowBytes,
                                bytes(t.heads, t.head_stride)};
  const cuuint32_t box[] = {64, cuuint32_t(rows), cuuint32_t(halves), 1};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  const auto type =
      s.type == Type::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  return encode(&map, type, 4, const_cast<void*>(t.data), sizes, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

bool make_maps(const ForwardArgs& args, ForwardMaps& maps) {
  const Shape& s = args.shape;
  const int halves = int(s.head_dim / 64);
  const auto of = [](const ConstRows& rows, int64_t tokens, int64_t heads) {
    return MapShape{rows.data, tokens, heads, rows.token_stride, rows.head_stride};
  };
  if (!make_map(of(args.q, s.total_q, s.heads), s, kGroupRows, halves, maps.q)) return false;
  if (args.paged.pool != nullptr) {  // one head of all pages' keys and values
    const MapShape pool{args.paged.pool, args.paged.pages * 2 * kPageKeys, 1, s.head_dim, 0};
    return make_map(pool, s, kPageKeys, 1, maps.k) && make_map(pool, s, kPageKeys, halves, maps.v);
  }
  const bool pairs = args.mask.words != nullptr && args.mask.block_size == kPageKeys;
  const int rows = pairs ? kPageKeys : kTileKeys;
  return make_map(of(args.k, s.total_k, s.kv_heads), s, rows, pairs ? 1 : halves, maps.k) &&
         make_map(of(args.v, s.total_k, s.kv_heads), s, kPageKeys, halves, maps.v);
}

ForwardParams make_params(const ForwardArgs& args) {
  const Shape& s = args.shape;
  const BlockMask& mask = args.mask;
  const bool dense = mask.words == nullptr;
  ForwardParams p{};
  p.cu_q = s.cu_seqlens_q;
  p.cu_k = s.cu_seqlens_k;
  p.block_table = args.paged.pool != nullptr ? args.paged.block_table : nullptr;
  p.words = mask.words;
  p.out = static_cast<uint16_t*>(args.out.data);
  p.lse = args.lse;
  p.ticket = static_cast<int*>(args.workspace);
  p.out_token_stride = args.out.token_stride;
  p.out_head_stride = args.out.head_stride;
  p.lse_stride = args.lse_stride;
  p.max_blocks = args.paged.max_blocks;
  p.row_words = mask.row_words;
  p.query_blocks = mask.query_blocks;
  p.batch = int(s.batch);
  p.heads = int(s.heads);
  p.kv_heads = int(s.kv_heads);
  p.mask_heads = dense ? 1 : int(mask.heads);
  p.block_size = dense ? kTileKeys : int(mask.block_size);
  p.key_blocks = int(std::min<int64_t>(mask.row_words * 32, std::numeric_limits<int>::max()));
  p.section_keys = int(kSectionBytes / (4 * s.head_dim));
  p.causal = s.causal;
  p.scale_log2 = float(double(s.scale) * 1.4426950408889634);
  return p;
}

const char* reason(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

bool forward_is_fast(const ForwardArgs& args) {
  const Shape& s = args.shape;
  const bool paged = args.paged.pool != nullptr;
  const auto even = [](const ConstRows& r, int64_t tokens, int64_t heads) {
    return aligned(r.data, tokens, heads, r.token_stride, r.head_stride);
  };
  constexpr int64_t kMostTokens = kNever / 2;
  return (s.head_dim == 64 || s.head_dim == 128) && s.type != Type::kF32 && s.scale > 0.0f &&
         std::isfinite(s.scale) && s.total_q > 0 && s.total_k > 0 && s.total_q < kMostTokens &&
         s.total_k < kMostTokens && args.paged.pages < kMostTokens / (2 * kPageKeys) &&
         most_items(s) < kNever && even(args.q, s.total_q, s.heads) &&
         aligned(args.out.data, s.total_q, s.heads, args.out.token_stride, args.out.head_stride) &&
         (paged ? aligned(args.paged.pool, 1, 1, 0, 0)
                : even(args.k, s.total_k, s.kv_heads) && even(args.v, s.total_k, s.kv_heads));
}

int64_t forward_workspace_bytes(const ForwardArgs&) { return 16; }

CudaStatus forward(const ForwardArgs& args, void* stream) {
  const Shape& s = args.shape;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (s.total_q == 0 || s.heads == 0 || s.batch == 0) return nullptr;
  if (args.mask.words != nullptr && args.mask.block_size != 64 && args.mask.block_size != 128)
    return "block_sparse forward: a mask of blocks that are neither of 64 nor of 128 keys";
  ForwardMaps maps;
  if (!forward_is_fast(args) || !make_maps(args, maps)) {
    if (s.head_dim > kMaxSimpleDim) return "block_sparse forward: a head dim above 256";
    return reason(run_forward_simple(args, cuda_stream));
  }
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return reason(error);
  const int blocks = int(std::min<int64_t>(processors, most_items(s)));
  const auto run = s.head_dim == 64 ? run_forward_d64 : run_forward_d128;
  return reason(run(s.type, make_params(args), maps, blocks, cuda_stream));
}

}  // namespace longspur::kernels::block_sparse::cuda

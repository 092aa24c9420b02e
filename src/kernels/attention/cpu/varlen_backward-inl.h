// Bodies of the attention over packed sequences, backward; compiled once an instruction set, after
// varlen-inl.h. Key-stationary: dk and dv of a block of keys stay in cache while all query rows
// that see it pass by; dq is added up outside, in a slice of its own for each of the tiles that
// share query rows, so that no two threads add to the same place and sums have a fixed order.
//
// All arithmetic is fp32: 16-bit operands are widened as they are packed.

inline float dot_rows(const float* a, const float* b, int64_t dp) {
  typename Simd::F sum = Simd::zero();
  for (int64_t i = 0; i < dp; i += Simd::kWidth)
    sum = Simd::add(sum, Simd::mul(Simd::load(a + i), Simd::load(b + i)));
  return Simd::reduce_add(sum);
}

inline void varlen_delta(const VarlenDeltaTile& tile) {
  const VarlenBackwardArgs& args = *tile.args;
  const int64_t dp = padded_dim(args.shape.head_dim);
  const int64_t total = args.shape.cu_seqlens_q[args.shape.batch];
  const auto* grad_lse = static_cast<const float*>(args.grad_lse);
  for (int64_t token = tile.q_begin; token < tile.q_begin + tile.tokens; ++token) {
    load_rows(args.out, args.shape, token, tile.head, 1, 1, tile.row);
    load_rows(args.grad_out, args.shape, token, tile.head, 1, 1, tile.row + dp);
    float delta = dot_rows(tile.row, tile.row + dp, dp);
    if (grad_lse != nullptr) delta -= grad_lse[tile.head * args.grad_lse_stride + token];
    tile.delta[tile.head * total + token] = delta;
  }
}

// Scores to p, and p * (grad_out v^T - delta) in place of grad_out v^T, for one row.
inline void gradient_row(float* s, float* dp, float factor, float lse, float delta, int64_t seen) {
  const typename Simd::F factor_v = Simd::set1(factor), lse_v = Simd::set1(lse * kLog2E),
                         delta_v = Simd::set1(delta);
  for (int j = 0; j < kBlockKeys; j += Simd::kWidth) {
    const typename Simd::F p = Simd::exp2(Simd::sub(Simd::mul(Simd::load(s + j), factor_v), lse_v));
    Simd::store(s + j, p);
    Simd::store(dp + j, Simd::mul(p, Simd::sub(Simd::load(dp + j), delta_v)));
  }
  for (int64_t j = seen < 0 ? 0 : seen; j < kBlockKeys; ++j) s[j] = dp[j] = 0.0f;
}

// Query rows [first, first + rows) of one head meet the packed block that begins at first_key.
inline void gradient_block(const VarlenBackwardTile& tile,
                           const VarlenBackwardScratch& scratch,
                           int64_t head,
                           int64_t first,
                           int64_t rows,
                           int64_t first_key) {
  const VarlenBackwardArgs& args = *tile.args;
  const VarlenShape& shape = args.shape;
  const int64_t d = shape.head_dim, dp = padded_dim(d), token = tile.q_begin + first;
  const int64_t total = shape.cu_seqlens_q[shape.batch];
  load_rows(args.q, shape, token, tile.first_head + head, rows, rows, scratch.q);
  load_rows(args.grad_out, shape, token, tile.first_head + head, rows, rows, scratch.grad_out);
  product<float>(rows, scratch.q, dp, scratch.keys_t, kBlockKeys, d, scratch.p, kBlockKeys, false);
  product<float>(rows, scratch.grad_out, dp, scratch.values_t, kBlockKeys, d, scratch.ds,
                 kBlockKeys, false);
  const float* lse =
      static_cast<const float*>(args.lse) + (tile.first_head + head) * args.lse_stride + token;
  const float* delta = tile.delta + (tile.first_head + head) * total + token;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t visible = visible_keys(shape.causal, tile.first_visible, first + r, tile.keys);
    gradient_row(scratch.p + r * kBlockKeys, scratch.ds + r * kBlockKeys,
                 float(shape.scale) * kLog2E, lse[r], delta[r], visible - first_key);
  }
  product<float, true>(kBlockKeys, scratch.p, kBlockKeys, scratch.grad_out, dp, rows, scratch.dv,
                       dp, true);
  product<float, true>(kBlockKeys, scratch.ds, kBlockKeys, scratch.q, dp, rows, scratch.dk, dp,
                       true);
  product<float>(rows, scratch.ds, kBlockKeys, scratch.keys, dp, kBlockKeys,
                 tile.dq + (head * tile.tokens + first) * dp, dp, true);
}

// Query rows [begin, end) of one head, from row t on, all of whose blocks list the keys of a block;
// none are left when begin is tile.tokens.
struct RowRange {
  int64_t begin, end;
};
inline RowRange next_rows(const VarlenBackwardTile& tile, int64_t head, int64_t key, int64_t t) {
  if (tile.mask == nullptr) return {t, tile.tokens};
  const BlockMask& mask = *tile.mask;
  const int64_t mask_head = (tile.first_head + head) * mask.heads / tile.args->shape.heads;
  const auto listed = [&](int64_t row) {
    return has_block(mask.row(tile.sequence, mask_head, row / kQueryBlock), key / mask.block_size);
  };
  const auto advance = [&](int64_t row) {
    const int64_t next = (row / kQueryBlock + 1) * kQueryBlock;
    return next < tile.tokens ? next : tile.tokens;
  };
  while (t < tile.tokens && !listed(t)) t = advance(t);
  RowRange rows{t, t};
  while (rows.end < tile.tokens && listed(rows.end)) rows.end = advance(rows.end);
  return rows;
}

inline void varlen_backward(const VarlenBackwardTile& tile, const VarlenBackwardScratch& scratch) {
  const VarlenBackwardArgs& args = *tile.args;
  const VarlenShape& shape = args.shape;
  const int64_t d = shape.head_dim, dp = padded_dim(d);
  zero_floats(tile.dq, tile.heads * tile.tokens * dp);
  for (int64_t key = tile.first_block * kBlockKeys; key < tile.keys;
       key += tile.block_step * kBlockKeys) {
    const int64_t count = tile.keys - key < kBlockKeys ? tile.keys - key : kBlockKeys;
    load_rows(args.v, shape, tile.k_begin + key, tile.kv_head, count, kBlockKeys, scratch.keys);
    transpose_block(scratch.keys, d, scratch.values_t);
    load_rows(args.k, shape, tile.k_begin + key, tile.kv_head, count, kBlockKeys, scratch.keys);
    transpose_block(scratch.keys, d, scratch.keys_t);
    zero_floats(scratch.dk, kBlockKeys * dp);
    zero_floats(scratch.dv, kBlockKeys * dp);
    // The first query that sees the block's first key.
    const int64_t from =
        shape.causal && key >= tile.first_visible ? key + 1 - tile.first_visible : 0;
    for (int64_t head = 0; head < tile.heads; ++head) {
      RowRange rows = next_rows(tile, head, key, from);
      for (; rows.begin < tile.tokens; rows = next_rows(tile, head, key, rows.end)) {
        for (int64_t t = rows.begin; t < rows.end; t += kGradientRows) {
          const int64_t left = rows.end - t;
          gradient_block(tile, scratch, head, t, left < kGradientRows ? left : kGradientRows, key);
        }
      }
    }
    for (int64_t j = 0; j < count; ++j) {
      const int64_t token = tile.k_begin + key + j;
      store_row(args.dk, shape.dtype, token, tile.kv_head, d, float(shape.scale),
                scratch.dk + j * dp);
      store_row(args.dv, shape.dtype, token, tile.kv_head, d, 1.0f, scratch.dv + j * dp);
    }
  }
}

inline void varlen_reduce(const VarlenReduceTile& tile) {
  const VarlenBackwardArgs& args = *tile.args;
  const int64_t d = args.shape.head_dim, dp = padded_dim(d);
  for (int64_t t = 0; t < tile.tokens; ++t) {
    zero_floats(tile.row, dp);
    for (int64_t slice = 0; slice < tile.slices; ++slice) {
      const float* from = tile.partial + slice * tile.slice_stride + t * dp;
      for (int64_t i = 0; i < dp; i += Simd::kWidth)
        Simd::store(tile.row + i, Simd::add(Simd::load(tile.row + i), Simd::load(from + i)));
    }
    store_row(args.dq, args.shape.dtype, tile.q_begin + t, tile.head, d, float(args.shape.scale),
              tile.row);
  }
}

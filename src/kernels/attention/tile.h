// One piece of paged attention and the table of functions that compute it, one table an instruction
// set. Private to this family.
//
// A tile holds `tokens` consecutive queries of one sequence times `group` query heads of one KV
// head; its rows are (token, head) pairs, so that heads of a group share every load of keys and
// values.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/attention/paged.h"
#include "kernels/attention/score_tile.h"
#include "kernels/attention/varlen_tile.h"

namespace longspur::kernels::attention {

inline constexpr int kMaxRows = 48;  // rows of a tile: S, P, Q and O of it stay in L2, mostly in L1
inline constexpr float kLog2E = 1.4426950408889634f;

inline int64_t padded_dim(int64_t d) { return (d + 15) / 16 * 16; }
// Values of a page begin behind its keys.
inline int64_t value_offset(KvType type, int64_t d) {
  return kPageTokens * d * (type == KvType::kF32 ? 4 : 2);
}

// Keys and values of consecutive tokens of one KV head, as rows of qkv hold them.
struct KvRows {
  const float* keys;
  const float* values;
  int64_t ld;
};

struct Tile {
  const float* q;  // first token's first head of the group; heads are D apart
  int64_t ldq;
  int64_t tokens, group;   // tokens * group <= kMaxRows
  int64_t first_position;  // of the first token
  int64_t head_dim;
  float scale;
  int64_t window;  // 0: none
  const std::byte* pool;
  int64_t page_bytes;
  const int32_t* pages;  // page ids of this sequence and KV head, from its first block
  int64_t first_block, end_block;
  const uint32_t* listed;  // row of a mask, of which a bit is pages_a_bit blocks; null: every block
  int64_t pages_a_bit;
  // With mean correction, else null: pages of the page's type whose token j is the mean of mask
  // block j; those of [mean_begin, mean_end) that are not listed count, with this much more of a
  // score.
  const std::byte* means;
  int64_t mean_page_bytes;
  int64_t mean_begin, mean_end;
  float mean_offset;
  KvType type;
  int64_t later_block;  // where this thread will probably read next; -1: unknown
  // kNVFP4 (set_nvfp4): the kSideBlocks pages in bf16; the block that is not full, or -1, and
  // whether they hold all of it; this call's rows, from position fresh_begin on.
  const int32_t* side;
  int64_t partial_block;
  bool partial_stored;
  KvRows fresh;
  int64_t fresh_begin;
  // Results: normalised rows to out, or (o, m, l) of each row to partial when that is given.
  float* out;  // like q, at stride ldo
  int64_t ldo;
  float* partial;  // [rows, padded_dim + 2]
  float* lse;      // null, or of the first token's first head; tokens are lse_stride apart
  int64_t lse_stride;
};

// The first block of the tile from `block` on, end_block at most.
inline int64_t listed_block(const Tile& tile, int64_t block) {
  if (tile.listed == nullptr) return block;
  while (block < tile.end_block && !has_block(tile.listed, block / tile.pages_a_bit)) ++block;
  return block;
}

// Natural log from a row's running maximum, base 2, and sum.
inline float natural_lse(float m, float l) {
  return l > 0.0f ? (m + __builtin_log2f(l)) / kLog2E : l == 0.0f ? -__builtin_inff() : l;
}

// Scratch of one thread, 64-byte aligned.
struct TileScratch {
  float* s;         // [kMaxRows, 64]
  void* p;          // [kMaxRows, 64] of the page's type
  void* q;          // [kMaxRows, D] of the page's type
  float* o;         // [kMaxRows, padded_dim]
  std::byte* page;  // kNVFP4: a page in bf16
};

// Tokens [first_row, end_row) of one sequence, all in one block: rotate q and k, append k and v.
struct AppendUnit {
  const RopeAppendArgs* args;
  float* rows;  // qkv of the first token
  int64_t tokens;
  int64_t position;  // of the first token
  int64_t head_dim, kv_heads;
  KvType type;
  std::byte* pool;
  int64_t page_bytes;
  const int32_t* pages;  // page of KV head g of this block at pages[g * max_blocks]
  const int32_t* side;   // kNVFP4: of KV head g at side[g * max_blocks]
  int64_t max_blocks;
  bool later;  // kNVFP4: rows of the newest block are stored when attention is done
};

// Means of the keys and values of mask blocks [first, end) of the pages of a tile, as tokens of one
// page; zeros from block `blocks` on.
struct MeansUnit {
  int64_t first, end, blocks;
  int64_t pages_a_block;
  std::byte* page;
};

struct KernelTable {
  std::string_view isa;
  void (*attend_bf16)(const Tile& tile, const TileScratch& scratch);
  void (*attend_f32)(const Tile& tile, const TileScratch& scratch);
  void (*append)(const AppendUnit& unit);
  void (*means_bf16)(const Tile& tile, const MeansUnit& unit, const TileScratch& scratch);
  void (*means_f32)(const Tile& tile, const MeansUnit& unit, const TileScratch& scratch);
  VarlenTable varlen;
  ScoreTable scores;
};

// Null where the build has no such unit.
const KernelTable* table_avx512bf16();
const KernelTable* table_avx512();
const KernelTable* table_avx2();
const KernelTable* table_portable();

// The table in use, and for tests a way to lower it ("avx512bf16", "avx512", "avx2", "portable").
const KernelTable& active_table();

}  // namespace longspur::kernels::attention

// Page ids of the paged key/value cache: who owns which page. Ids only, no memory, no device.
//
// A page holds 64 tokens of one KV head of one layer. A sequence grows in blocks of 64 tokens; one
// block takes `pages_per_block` pages (layers * KV heads), which need not be neighbours. Beside
// them it may own a fixed number of side blocks, which hold no tokens of their own (NVFP4 caches
// keep what is not quantised there).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace longspur::cache {

inline constexpr int64_t kBlockTokens = 64;

class BlockManager {
 public:
  // side_blocks: of each sequence that owns any block
  BlockManager(int64_t pages, int64_t pages_per_block, int64_t side_blocks = 0);

  int64_t total_blocks() const { return total_pages_ / pages_per_block_; }
  int64_t free_blocks() const { return int64_t(free_.size()) / pages_per_block_; }
  int64_t pages_per_block() const { return pages_per_block_; }
  int64_t side_blocks() const { return side_blocks_; }

 private:
  friend class BlockTable;
  int64_t total_pages_;
  int64_t pages_per_block_;
  int64_t side_blocks_;
  std::vector<int32_t> free_;  // taken from the back: recently used pages are reused first
};

// The pages of one sequence. Returns them when it goes out of scope. Move-only.
class BlockTable {
 public:
  explicit BlockTable(BlockManager& manager) : manager_(&manager) {}
  ~BlockTable() { release(); }
  BlockTable(BlockTable&& other) noexcept;
  BlockTable& operator=(BlockTable&& other) noexcept;

  // Blocks of tokens.
  int64_t blocks() const {
    const int64_t all = int64_t(pages_.size()) / manager_->pages_per_block_;
    return all == 0 ? 0 : all - manager_->side_blocks_;
  }
  int64_t side_blocks() const { return manager_->side_blocks_; }
  // Pages for at least `tokens` tokens; false, and nothing changed, when too few are free.
  [[nodiscard]] bool grow(int64_t tokens);
  void release();

  // The page of block `block` for page slot `slot` = layer * G + kv_head.
  int32_t page(int64_t block, int64_t slot) const {
    return side_page(manager_->side_blocks_ + block, slot);
  }
  int32_t side_page(int64_t side, int64_t slot) const {
    return pages_[std::size_t(side * manager_->pages_per_block_ + slot)];
  }

 private:
  BlockManager* manager_;
  std::vector<int32_t> pages_;  // [side blocks, then blocks; pages_per_block]
};

}  // namespace longspur::cache

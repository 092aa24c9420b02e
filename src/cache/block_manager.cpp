#include "cache/block_manager.h"

#include <limits>
#include <utility>

#include "base/error.h"
#include "base/shape.h"

namespace longspur::cache {

BlockManager::BlockManager(int64_t pages, int64_t pages_per_block, int64_t side_blocks)
    : total_pages_(pages), pages_per_block_(pages_per_block), side_blocks_(side_blocks) {
  require(pages_per_block >= 1, "pages a block: found ", pages_per_block, ", expected at least 1");
  require(pages >= pages_per_block && pages <= std::numeric_limits<int32_t>::max(),
          "cache pages: found ", pages, ", expected ", pages_per_block, " to 2^31 - 1");
  free_.reserve(size_t(pages));
  for (int64_t page = pages - 1; page >= 0; --page) free_.push_back(int32_t(page));
}

BlockTable::BlockTable(BlockTable&& other) noexcept
    : manager_(other.manager_), pages_(std::exchange(other.pages_, {})) {}

BlockTable& BlockTable::operator=(BlockTable&& other) noexcept {
  if (this != &other) {
    release();
    manager_ = other.manager_;
    pages_ = std::exchange(other.pages_, {});
  }
  return *this;
}

bool BlockTable::grow(int64_t tokens) {
  int64_t missing = ceil_div(tokens, kBlockTokens) - blocks();
  if (missing <= 0) return true;
  if (pages_.empty()) missing += manager_->side_blocks_;
  if (missing > manager_->free_blocks()) return false;
  auto& free = manager_->free_;
  for (int64_t i = 0; i < missing * manager_->pages_per_block_; ++i) {
    pages_.push_back(free.back());
    free.pop_back();
  }
  return true;
}

void BlockTable::release() {
  // In reverse, so that the next owner gets them in the same order.
  manager_->free_.insert(manager_->free_.end(), pages_.rbegin(), pages_.rend());
  pages_.clear();
}

}  // namespace longspur::cache

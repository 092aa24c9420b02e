#include "cache/block_manager.h"

#include <gtest/gtest.h>

#include <set>

#include "base/error.h"

namespace longspur::cache {
namespace {

TEST(BlockManager, PagesAreUniqueWhileOwned) {
  BlockManager manager(60, 6);
  BlockTable a(manager), b(manager);
  ASSERT_TRUE(a.grow(130));  // 3 blocks
  ASSERT_TRUE(b.grow(64));
  std::set<int32_t> pages;
  for (int64_t slot = 0; slot < 6; ++slot) {
    for (int64_t block = 0; block < 3; ++block) pages.insert(a.page(block, slot));
    pages.insert(b.page(0, slot));
  }
  EXPECT_EQ(pages.size(), 24u);
  EXPECT_EQ(manager.free_blocks(), 6);
}

TEST(BlockManager, GrowIsAllOrNothing) {
  BlockManager manager(10, 2);
  BlockTable a(manager);
  ASSERT_TRUE(a.grow(64 * 3));
  BlockTable b(manager);
  EXPECT_FALSE(b.grow(64 * 3));
  EXPECT_EQ(b.blocks(), 0);
  EXPECT_EQ(manager.free_blocks(), 2);
  EXPECT_TRUE(b.grow(64 * 2));
  EXPECT_FALSE(a.grow(64 * 3 + 1));
  EXPECT_EQ(a.blocks(), 3);
}

TEST(BlockManager, ReleaseAndMoveReturnEveryPageOnce) {
  BlockManager manager(12, 3);
  {
    BlockTable a(manager);
    ASSERT_TRUE(a.grow(200));
    BlockTable b = std::move(a);
    EXPECT_EQ(b.blocks(), 4);
    b = BlockTable(manager);
    EXPECT_EQ(manager.free_blocks(), 4);
    ASSERT_TRUE(b.grow(1));
  }
  EXPECT_EQ(manager.free_blocks(), 4);
}

TEST(BlockManager, SideBlocksComeWithTheFirstBlock) {
  BlockManager manager(20, 2, 3);
  {
    BlockTable a(manager);
    EXPECT_EQ(a.blocks(), 0);
    ASSERT_TRUE(a.grow(65));
    EXPECT_EQ(a.blocks(), 2);
    EXPECT_EQ(manager.free_blocks(), 5);
    ASSERT_TRUE(a.grow(129));
    EXPECT_EQ(manager.free_blocks(), 4);
    std::set<int32_t> pages;
    for (int64_t slot = 0; slot < 2; ++slot) {
      for (int64_t i = 0; i < 3; ++i) {
        pages.insert(a.page(i, slot));
        pages.insert(a.side_page(i, slot));
      }
    }
    EXPECT_EQ(pages.size(), 12u);
    BlockTable b(manager);
    EXPECT_FALSE(b.grow(65));  // 2 + 3 of 4
    EXPECT_TRUE(b.grow(64));
    EXPECT_EQ(manager.free_blocks(), 0);
  }
  EXPECT_EQ(manager.free_blocks(), 10);
}

TEST(BlockManager, RefusesImpossibleSizes) {
  EXPECT_THROW(BlockManager(5, 0), Error);
  EXPECT_THROW(BlockManager(5, 6), Error);
}

}  // namespace
}  // namespace longspur::cache

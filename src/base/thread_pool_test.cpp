#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <numeric>
#include <stdexcept>

#include "base/error.h"

namespace longspur {
namespace {

class ThreadPoolTest : public ::testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, DynamicForVisitsEachIndexOnce) {
  ThreadPool pool(GetParam());
  for (int64_t n : {0, 1, 7, 1000}) {
    std::vector<int> visits(size_t(n), 0);
    pool.run([&](Team& team) {
      for (int repeat = 0; repeat < 5; ++repeat) {
        team.dynamic_for(n, 3, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) ++visits[size_t(i)];
        });
      }
    });
    for (int count : visits) EXPECT_EQ(count, 5);
  }
}

TEST_P(ThreadPoolTest, BarrierOrdersWritesBeforeReads) {
  ThreadPool pool(GetParam());
  const int size = pool.size();
  std::vector<int> values(static_cast<size_t>(size), 0);
  std::vector<int> bad(static_cast<size_t>(size), 0);
  pool.run([&](Team& team) {
    for (int round = 1; round <= 300; ++round) {
      values[size_t(team.rank())] = round;
      team.barrier();
      if (std::accumulate(values.begin(), values.end(), 0) != round * size)
        ++bad[size_t(team.rank())];
      team.barrier();
    }
  });
  EXPECT_EQ(std::accumulate(bad.begin(), bad.end(), 0), 0);
}

TEST_P(ThreadPoolTest, StaticRangesTile) {
  ThreadPool pool(GetParam());
  for (int64_t n : {0, 5, 64, 129}) {
    std::vector<int> visits(size_t(n), 0);
    pool.run([&](Team& team) {
      const auto range = team.static_range(n, 16);
      EXPECT_EQ(range.begin % 16 == 0 || range.begin == n, true);
      for (int64_t i = range.begin; i < range.end; ++i) ++visits[size_t(i)];
    });
    for (int count : visits) EXPECT_EQ(count, 1);
  }
}

TEST_P(ThreadPoolTest, ExceptionReachesTheCallerAndThePoolSurvives) {
  ThreadPool pool(GetParam());
  EXPECT_THROW(pool.run([](Team& team) {
    if (team.rank() == team.size() - 1) throw std::runtime_error("x");
  }),
               std::runtime_error);
  int sum = 0;
  pool.run([&](Team& team) {
    if (team.rank() == 0) sum = 1;
  });
  EXPECT_EQ(sum, 1);
}

INSTANTIATE_TEST_SUITE_P(Sizes, ThreadPoolTest, ::testing::Values(1, 2, 3, 7));

TEST(ThreadPool, RefusesNoThreads) { EXPECT_THROW(ThreadPool(0), Error); }

TEST(ThreadPool, CountsAvailableThreads) { EXPECT_GE(available_threads(), 1); }

}  // namespace
}  // namespace longspur

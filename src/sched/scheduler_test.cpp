#include "sched/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "base/rng.h"

namespace longspur::sched {
namespace {

// Runs every sequence to its length; returns the number of steps.
int64_t run_all(Scheduler& scheduler,
                std::vector<std::unique_ptr<Sequence>>& sequences,
                const std::vector<int64_t>& lengths,
                const Limits& limits) {
  int64_t steps = 0;
  while (!scheduler.idle()) {
    const std::vector<Work> works = scheduler.plan();
    int64_t tokens = 0;
    for (const Work& work : works) {
      tokens += work.tokens;
      EXPECT_LE(work.sequence->computed + work.tokens, work.sequence->total);
      EXPECT_GE(work.sequence->blocks.blocks() * cache::kBlockTokens,
                work.sequence->computed + work.tokens);
    }
    EXPECT_LE(tokens, limits.chunk_tokens + (limits.align > 1 ? limits.align : 0));
    for (const Work& work : works) {
      const int64_t end = work.sequence->computed + work.tokens;
      if (work.sequence->computed < work.sequence->prompt && limits.align > 1) {
        EXPECT_TRUE(end == work.sequence->prompt || end % limits.align == 0) << end;
      }
    }
    EXPECT_LE(int64_t(works.size()), limits.max_sequences);
    Scheduler::complete(works);
    for (const Work& work : works) {
      if (work.sequence->computed < work.sequence->total) continue;
      for (size_t i = 0; i < sequences.size(); ++i) {
        if (sequences[i].get() != work.sequence) continue;
        if (work.sequence->total == lengths[i])
          scheduler.remove(*work.sequence);
        else
          ++work.sequence->total;
      }
    }
    EXPECT_LT(++steps, 100000);
  }
  return steps;
}

TEST(Scheduler, ChunksAPromptThenDecodes) {
  cache::BlockManager manager(100, 1);
  Scheduler scheduler({.chunk_tokens = 128, .max_sequences = 4});
  Sequence sequence(manager);
  sequence.total = 300;
  scheduler.add(sequence);
  for (int64_t expected : {128, 128, 44}) {
    const auto works = scheduler.plan();
    ASSERT_EQ(works.size(), 1u);
    EXPECT_EQ(works[0].tokens, expected);
    Scheduler::complete(works);
  }
  sequence.total = 301;
  EXPECT_EQ(scheduler.plan()[0].tokens, 1);
  scheduler.remove(sequence);
  EXPECT_TRUE(scheduler.idle());
  EXPECT_EQ(manager.free_blocks(), 100);
}

TEST(Scheduler, DecodesGoBeforePrompts) {
  cache::BlockManager manager(100, 1);
  Scheduler scheduler({.chunk_tokens = 64, .max_sequences = 4});
  Sequence a(manager), b(manager);
  a.total = 10;
  b.total = 500;
  scheduler.add(a);
  scheduler.add(b);
  auto works = scheduler.plan();
  ASSERT_EQ(works.size(), 2u);
  EXPECT_EQ(works[1].tokens, 54);
  Scheduler::complete(works);
  a.total = 11;
  works = scheduler.plan();
  EXPECT_EQ(works[0].sequence, &a);
  EXPECT_EQ(works[0].tokens, 1);
  EXPECT_EQ(works[1].tokens, 63);
}

TEST(Scheduler, PreemptsTheNewestAndFinishesAll) {
  const Limits limits{.chunk_tokens = 96, .max_sequences = 5};
  cache::BlockManager manager(12, 1);  // the longest needs 10 blocks alone
  Scheduler scheduler(limits);
  std::vector<std::unique_ptr<Sequence>> sequences;
  const std::vector<int64_t> lengths = {640, 200, 333, 64, 65, 128, 639};
  for (int64_t length : lengths) {
    sequences.push_back(std::make_unique<Sequence>(manager));
    sequences.back()->total = length / 3;
    scheduler.add(*sequences.back());
  }
  run_all(scheduler, sequences, lengths, limits);
  EXPECT_GT(scheduler.preemptions(), 0);
  EXPECT_EQ(manager.free_blocks(), 12);
}

TEST(Scheduler, RandomLoadsAlwaysFinish) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const auto draw = philox4x32(seed, 0, 0);
    const Limits limits{.chunk_tokens = 1 + draw[0] % 200,
                        .max_sequences = 1 + draw[1] % 8,
                        .align = seed % 2 == 0 ? 1 : 128};
    cache::BlockManager manager(3 * (8 + draw[2] % 20), 3);
    Scheduler scheduler(limits);
    std::vector<std::unique_ptr<Sequence>> sequences;
    std::vector<int64_t> lengths;
    for (uint64_t i = 0; i < 12; ++i) {
      lengths.push_back(2 + philox4x32(seed, 1, i)[0] % 500);
      sequences.push_back(std::make_unique<Sequence>(manager));
      sequences.back()->total = 1 + philox4x32(seed, 2, i)[0] % uint64_t(lengths.back());
      sequences.back()->prompt = sequences.back()->total;
      scheduler.add(*sequences.back());
    }
    run_all(scheduler, sequences, lengths, limits);
    EXPECT_EQ(manager.free_blocks(), manager.total_blocks()) << "seed " << seed;
  }
}

TEST(Scheduler, AlignedPiecesOfAPromptEndAtBlocksOrWhereItEnds) {
  cache::BlockManager manager(200, 1);
  Scheduler scheduler({.chunk_tokens = 300, .max_sequences = 4, .align = 128});
  Sequence sequence(manager);
  sequence.total = 700;  // a preempted sequence: 50 tokens of an answer
  sequence.prompt = 650;
  scheduler.add(sequence);
  for (const int64_t expected : {256, 256, 138, 50}) {
    const auto works = scheduler.plan();
    ASSERT_EQ(works.size(), 1u);
    EXPECT_EQ(works[0].tokens, expected);
    Scheduler::complete(works);
  }
}

TEST(Scheduler, AnAlignedPromptGetsABlockBesideManyDecodes) {
  cache::BlockManager manager(200, 1);
  Scheduler scheduler({.chunk_tokens = 4, .max_sequences = 8, .align = 128});
  std::vector<std::unique_ptr<Sequence>> decoding;
  for (int i = 0; i < 5; ++i) {
    Sequence& sequence = *decoding.emplace_back(std::make_unique<Sequence>(manager));
    sequence.total = sequence.prompt = 1;
    scheduler.add(sequence);
  }
  while (std::any_of(decoding.begin(), decoding.end(), [](auto& s) { return s->computed == 0; }))
    Scheduler::complete(scheduler.plan());
  for (const auto& sequence : decoding) ++sequence->total;
  Sequence prompt(manager);
  prompt.total = prompt.prompt = 300;
  scheduler.add(prompt);
  const auto works = scheduler.plan();
  ASSERT_EQ(works.size(), 5u);  // four decodes, then the prompt
  EXPECT_EQ(works.back().sequence, &prompt);
  EXPECT_EQ(works.back().tokens, 128);
}

TEST(Scheduler, RemovingAWaitingSequenceLeavesTheOthers) {
  cache::BlockManager manager(4, 1);
  Scheduler scheduler({.chunk_tokens = 64, .max_sequences = 1});
  Sequence a(manager), b(manager), c(manager);
  a.total = b.total = c.total = 5;
  scheduler.add(a);
  scheduler.add(b);
  scheduler.add(c);
  Scheduler::complete(scheduler.plan());
  scheduler.remove(b);
  scheduler.remove(a);
  EXPECT_EQ(scheduler.plan()[0].sequence, &c);
}

}  // namespace
}  // namespace longspur::sched

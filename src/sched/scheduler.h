// Which sequences run in the next step and with how many tokens. Pure: no torch, no device, no
// clock.
//
// A sequence has `total` known tokens (prompt and sampled) of which `computed` are in the cache.
// Decoding is the case total - computed == 1, prefilling the case of more. Each step serves, in
// this order and within `chunk_tokens` tokens: sequences that decode, sequences that prefill,
// waiting sequences (first come, first served). When pages run out the newest running sequence
// gives its pages back and is computed again later (recompute preemption), so an admitted sequence
// never fails.
//
// Sparse prefill computes a prompt in blocks of `align` tokens: pieces of it then end at multiples
// of `align`, or where it ends, so that what a block sees does not depend on how it was cut. The
// first prompt of a step gets a block however many sequences decode; a step has up to
// chunk_tokens + align tokens.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "cache/block_manager.h"

namespace longspur::sched {

struct Limits {
  int64_t chunk_tokens = 512;  // tokens of one step
  int64_t max_sequences = 16;  // running at once
  int64_t align = 1;
};

// One sequence as the scheduler sees it; owned by the caller, which appends sampled tokens by
// raising `total`.
struct Sequence {
  explicit Sequence(cache::BlockManager& manager) : blocks(manager) {}
  int64_t total = 0;
  int64_t computed = 0;
  int64_t prompt = 0;  // tokens that are cut by `align`
  cache::BlockTable blocks;
};

struct Work {
  Sequence* sequence;
  int64_t tokens;  // run tokens [computed, computed + tokens)
};

class Scheduler {
 public:
  explicit Scheduler(const Limits& limits) : limits_(limits) {}

  // The sequence stays valid until remove(). `total` >= 1.
  void add(Sequence& sequence) { waiting_.push_back(&sequence); }
  void remove(Sequence& sequence);

  // Plans a step and takes its pages. The caller runs it and then calls complete().
  std::vector<Work> plan();
  static void complete(const std::vector<Work>& works);

  bool idle() const { return waiting_.empty() && running_.empty(); }
  int64_t preemptions() const { return preemptions_; }

 private:
  // Pages for `tokens` more of running_[index], preempting newer sequences if need be.
  bool make_room(size_t index, int64_t tokens);
  void preempt_newest();
  void admit(int64_t& budget, std::vector<Work>& works);
  bool is_aligned(const Sequence& sequence) const {
    return limits_.align > 1 && sequence.computed < sequence.prompt;
  }
  // Tokens of the sequence that may run within a budget; 0: less than a block.
  int64_t piece(const Sequence& sequence, int64_t budget) const;

  Limits limits_;
  std::deque<Sequence*> waiting_;
  std::vector<Sequence*> running_;  // oldest first
  int64_t preemptions_ = 0;
};

}  // namespace longspur::sched

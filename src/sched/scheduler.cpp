#include "sched/scheduler.h"

#include <algorithm>

#include "base/error.h"

namespace longspur::sched {

void Scheduler::remove(Sequence& sequence) {
  std::erase(waiting_, &sequence);
  std::erase(running_, &sequence);
  sequence.blocks.release();
}

void Scheduler::preempt_newest() {
  Sequence* victim = running_.back();
  running_.pop_back();
  victim->blocks.release();
  victim->computed = 0;
  waiting_.push_front(victim);
  ++preemptions_;
}

bool Scheduler::make_room(size_t index, int64_t tokens) {
  Sequence* sequence = running_[index];
  while (!sequence->blocks.grow(sequence->computed + tokens)) {
    if (running_.size() == index + 1) return false;
    preempt_newest();
  }
  return true;
}

int64_t Scheduler::piece(const Sequence& sequence, int64_t budget) const {
  int64_t end = std::min(sequence.total, sequence.computed + budget);
  if (is_aligned(sequence))
    end = end >= sequence.prompt ? sequence.prompt : end / limits_.align * limits_.align;
  return std::max<int64_t>(0, end - sequence.computed);
}

void Scheduler::admit(int64_t& budget, std::vector<Work>& works) {
  while (budget > 0 && !waiting_.empty() && int64_t(running_.size()) < limits_.max_sequences) {
    Sequence* sequence = waiting_.front();
    // All of its known tokens must fit now: a half-admitted prompt would only be preempted again.
    const int64_t tokens = piece(*sequence, budget);
    if (tokens == 0 || !sequence->blocks.grow(sequence->total)) return;
    waiting_.pop_front();
    running_.push_back(sequence);
    works.push_back({sequence, tokens});
    budget -= tokens;
  }
}

std::vector<Work> Scheduler::plan() {
  std::vector<Work> works;
  int64_t budget = limits_.chunk_tokens;
  // Decodes first, then unfinished prompts; within each oldest first. Preemption shrinks running_
  // from the back, so no sequence planned before the current index is ever taken away.
  std::stable_partition(running_.begin(), running_.end(),
                        [](const Sequence* s) { return s->total - s->computed == 1; });
  bool prompt_seen = limits_.align == 1;
  const auto see_prompt = [&] {
    if (!prompt_seen) budget = std::max(budget, limits_.align);
    prompt_seen = true;
  };
  for (size_t index = 0; index < running_.size(); ++index) {
    Sequence* sequence = running_[index];
    LONGSPUR_ASSERT(sequence->total > sequence->computed);
    if (is_aligned(*sequence)) see_prompt();
    const int64_t tokens = piece(*sequence, budget);
    if (tokens == 0) continue;
    if (!make_room(index, tokens)) {
      preempt_newest();  // the sequence itself: it is the newest left
      break;
    }
    works.push_back({sequence, tokens});
    budget -= tokens;
  }
  see_prompt();
  admit(budget, works);
  LONGSPUR_ASSERT(!works.empty() || idle());
  return works;
}

void Scheduler::complete(const std::vector<Work>& works) {
  for (const Work& work : works) work.sequence->computed += work.tokens;
}

}  // namespace longspur::sched

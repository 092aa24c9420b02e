// A team of threads that run the same function (SPMD). A whole forward pass is one run(): inside it
// threads meet at spin barriers (well under a microsecond for a few threads), so that small ops do
// not pay a wake-up each.
//
//   pool.run([&](Team& team) {
//     team.dynamic_for(rows, 16, [&](int64_t begin, int64_t end) { ... });   // ends with a barrier
//     if (team.rank() == 0) ...;
//     team.barrier();
//   });
//
// The function must not throw while other threads may still wait at a barrier: check inputs before
// run(). An exception that reaches the end of the function on any thread is rethrown by run().
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace longspur {

class ThreadPool;

// One thread's view of a running team.
class Team {
 public:
  int rank() const { return rank_; }
  int size() const { return size_; }

  // Returns when every thread of the team has arrived.
  void barrier();

  // Calls f(begin, end) for pieces of [0, n) of at most `grain`, handed to whichever thread is
  // free; ends with a barrier. All threads must call it with the same arguments.
  template <class F>
  void dynamic_for(int64_t n, int64_t grain, F&& f) {
    if (size_ == 1) {
      for (int64_t begin = 0; begin < n; begin += grain)
        f(begin, begin + grain < n ? begin + grain : n);
      return;
    }
    std::atomic<int64_t>& next = begin_loop();
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= n) break;
      f(begin, begin + grain < n ? begin + grain : n);
    }
    barrier();
  }

  // The share [begin, end) of [0, n) that belongs to this rank, in multiples of `unit`.
  struct Range {
    int64_t begin, end;
  };
  Range static_range(int64_t n, int64_t unit = 1) const;

 private:
  friend class ThreadPool;
  Team(ThreadPool& pool, int rank, int size) : pool_(pool), rank_(rank), size_(size) {}
  std::atomic<int64_t>& begin_loop();

  ThreadPool& pool_;
  int rank_;
  int size_;
  uint64_t loops_ = 0;  // dynamic loops begun in this run
};

class ThreadPool {
 public:
  // threads >= 1, counting the caller of run().
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // Runs f on every thread of the pool, the caller being rank 0. Not reentrant; one caller at a
  // time.
  void run(const std::function<void(Team&)>& f);

 private:
  friend class Team;
  struct Shared;
  int size_;
  std::unique_ptr<Shared> shared_;
};

// Hardware threads this process may use (affinity mask), at least 1.
int available_threads();

}  // namespace longspur

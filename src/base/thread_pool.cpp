#include "base/thread_pool.h"

#include <sched.h>

#include <array>
#include <chrono>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/shape.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace longspur {

namespace {

constexpr size_t kCacheLine = 64;
// A waiting thread spins this long before it yields the core to others.
constexpr int kSpinsBeforeYield = 4096;

void pause_cpu() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Done>
void spin_until(Done done) {
  for (int spins = 0; !done(); ++spins) {
    if (spins < kSpinsBeforeYield)
      pause_cpu();
    else
      std::this_thread::yield();
  }
}

}  // namespace

struct ThreadPool::Shared {
  alignas(kCacheLine) std::atomic<uint32_t> arrived{0};
  alignas(kCacheLine) std::atomic<uint32_t> phase{0};
  // Three counters in turn: while loop i runs, its successor's counter is already zero.
  struct alignas(kCacheLine) Counter {
    std::atomic<int64_t> next{0};
  };
  std::array<Counter, 3> counters;
  alignas(kCacheLine) std::atomic<uint64_t> generation{0};
  alignas(kCacheLine) std::atomic<int> running{0};
  std::atomic<bool> stop{false};
  const std::function<void(Team&)>* function = nullptr;
  std::mutex error_mutex;
  std::exception_ptr error;
  std::vector<std::thread> threads;

  void call(Team& team) {
    try {
      (*function)(team);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  }
};

void Team::barrier() {
  if (size_ == 1) return;
  ThreadPool::Shared& shared = *pool_.shared_;
  const uint32_t phase = shared.phase.load(std::memory_order_acquire);
  if (shared.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == uint32_t(size_)) {
    shared.arrived.store(0, std::memory_order_relaxed);
    shared.phase.store(phase + 1, std::memory_order_release);
    return;
  }
  spin_until([&] { return shared.phase.load(std::memory_order_acquire) != phase; });
}

std::atomic<int64_t>& Team::begin_loop() {
  auto& counters = pool_.shared_->counters;
  const uint64_t loop = loops_++;
  // Every thread has left loop - 1 (it ended with a barrier), so nobody uses the successor's
  // counter.
  if (rank_ == 0) counters[(loop + 1) % 3].next.store(0, std::memory_order_relaxed);
  return counters[loop % 3].next;
}

Team::Range Team::static_range(int64_t n, int64_t unit) const {
  const int64_t units = ceil_div(n, unit);
  const int64_t begin = units * rank_ / size_ * unit;
  const int64_t end = units * (rank_ + 1) / size_ * unit;
  return {begin < n ? begin : n, end < n ? end : n};
}

ThreadPool::ThreadPool(int threads) : size_(threads), shared_(std::make_unique<Shared>()) {
  require(threads >= 1 && threads <= 1024, "threads: found ", threads, ", expected 1 to 1024");
  for (int rank = 1; rank < threads; ++rank) {
    shared_->threads.emplace_back([this, rank] {
      Shared& shared = *shared_;
      uint64_t seen = 0;
      for (;;) {
        // Spin briefly: the next step of a decode loop follows within microseconds. Then sleep.
        for (int spins = 0; spins < kSpinsBeforeYield * 4; ++spins) {
          if (shared.generation.load(std::memory_order_acquire) != seen) break;
          pause_cpu();
        }
        shared.generation.wait(seen, std::memory_order_acquire);
        ++seen;
        if (shared.stop.load(std::memory_order_acquire)) return;
        Team team(*this, rank, size_);
        shared.call(team);
        shared.running.fetch_sub(1, std::memory_order_release);
      }
    });
  }
}

ThreadPool::~ThreadPool() {
  shared_->stop.store(true, std::memory_order_release);
  shared_->generation.fetch_add(1, std::memory_order_release);
  shared_->generation.notify_all();
  for (std::thread& thread : shared_->threads) thread.join();
}

void ThreadPool::run(const std::function<void(Team&)>& f) {
  Shared& shared = *shared_;
  shared.function = &f;
  for (auto& counter : shared.counters) counter.next.store(0, std::memory_order_relaxed);
  shared.running.store(size_ - 1, std::memory_order_relaxed);
  if (size_ > 1) {
    shared.generation.fetch_add(1, std::memory_order_release);
    shared.generation.notify_all();
  }
  Team team(*this, 0, size_);
  shared.call(team);
  spin_until([&] { return shared.running.load(std::memory_order_acquire) == 0; });
  if (shared.error) std::rethrow_exception(std::exchange(shared.error, nullptr));
}

int available_threads() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
  const unsigned count = std::thread::hardware_concurrency();
  return count > 0 ? int(count) : 1;
}

}  // namespace longspur

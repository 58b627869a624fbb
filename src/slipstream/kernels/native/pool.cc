#include "pool.h"

#include "entry.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include <pthread.h>
#include <signal.h>
#if defined(__linux__)
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace slipstream {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// A helper spins this long for the next region. Regions of one step follow each other within microseconds; between steps
// a helper should sleep, and so leave the processor to whoever wants it.
constexpr microseconds kHelperSpin{60};
// The caller spins this long for chunks that helpers still work at, then sleeps: the helper may need its processor.
constexpr microseconds kCallerSpin{30};
// How long to work alone after a helper has lost its processor. Doubled each time that happens again, and shortened slowly by
// regions that went well: beside a busy neighbour most do, but the few that wait for a whole time slice cost more.
constexpr microseconds kFirstAlone{2000}, kLongestAlone{200000};

inline void pause() {
#if defined(__SSE2__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Flushes denormals to zero while it lives. They are 100 times slower and carry nothing at the precision of a model.
class FlushDenormals {
 public:
#if defined(__SSE2__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" ::"r"(before_ | (1ull << 24)));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(before_)); }

 private:
  uint64_t before_;
#endif
};

// Returns whether `done` became true within `limit`.
template <class Done>
bool spin(microseconds limit, Done&& done) {
  const Clock::time_point end = Clock::now() + limit;
  do {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      pause();
    }
  } while (Clock::now() < end);
  return false;
}

// How often this thread was taken off its processor against its will.
long preemptions() {
#if defined(__linux__)
  rusage usage;
  if (getrusage(RUSAGE_THREAD, &usage) == 0) return usage.ru_nivcsw;
#endif
  return 0;
}

class Pool {
 public:
  explicit Pool(int threads) : threads_(threads) {}

  int threads() const { return threads_.load(std::memory_order_relaxed); }

  void set_threads(int count) {
    while (busy_.exchange(true, std::memory_order_acquire)) std::this_thread::yield();
    stop();
    threads_.store(count, std::memory_order_relaxed);
    busy_.store(false, std::memory_order_release);
  }

  void run(int64_t chunks, ChunkFunction fn, void* context) {
    if (chunks < 2 || threads() < 2 || busy_.exchange(true, std::memory_order_acquire)) {
      for (int64_t chunk = 0; chunk < chunks; ++chunk) fn(context, chunk);
      return;
    }
    if (Clock::now() < alone_until_) {
      busy_.store(false, std::memory_order_release);
      for (int64_t chunk = 0; chunk < chunks; ++chunk) fn(context, chunk);
      return;
    }
    if (!started_) start();
    fn_ = fn;
    context_ = context;
    chunks_ = chunks;
    next_.store(0, std::memory_order_relaxed);
    const uint64_t generation = (state_.load(std::memory_order_relaxed) >> 32) + 1;
    state_.store(generation << 32 | kOpen);
    wake(chunks - 1);
    work();
    if (state_.fetch_and(~kOpen) & kHelpers) await_helpers();
    busy_.store(false, std::memory_order_release);
  }

 private:
  // state_: generation (32 bits), whether helpers may still join, how many have joined and not left.
  static constexpr uint64_t kOpen = 1u << 31, kHelpers = kOpen - 1;

  void work() {
    for (int64_t chunk; (chunk = next_.fetch_add(1, std::memory_order_relaxed)) < chunks_;) fn_(context_, chunk);
  }

  // Pairs with sleep(): either the caller sees the sleeper, or the sleeper sees the open state.
  void wake(int64_t wanted) {
    const int sleepers = sleepers_.load();
    if (sleepers == 0) return;
    { std::lock_guard<std::mutex> lock(mutex_); }
    if (wanted >= sleepers) {
      work_there_.notify_all();
    } else {
      for (int64_t i = 0; i < wanted; ++i) work_there_.notify_one();
    }
  }

  void await_helpers() {
    const auto left = [this] { return (state_.load() & kHelpers) == 0; };
    if (spin(kCallerSpin, left)) {
      alone_for_ = std::max(kFirstAlone, alone_for_ - alone_for_ / 64);
      return;
    }
    {
      std::unique_lock<std::mutex> lock(mutex_);
      lost_processor_ = false;
      caller_sleeps_.store(true);
      helpers_left_.wait(lock, left);
      caller_sleeps_.store(false);
    }
    // A long wait alone proves nothing, chunks may be long; a helper that was preempted meanwhile does.
    if (lost_processor_) {
      alone_until_ = Clock::now() + alone_for_;
      alone_for_ = std::min(alone_for_ * 2, kLongestAlone);
    }
  }

  void help(long* preempted) {
    work();
    const uint64_t before = state_.fetch_sub(1);
    if ((before & (kOpen | kHelpers)) != 1 || !caller_sleeps_.load()) return;
    const long now = preemptions();
    std::lock_guard<std::mutex> lock(mutex_);
    lost_processor_ |= now > *preempted;
    *preempted = now;
    helpers_left_.notify_one();
  }

  void helper() {
    const FlushDenormals flush;
    uint64_t seen = 0;  // the generation this helper has worked at: it joins each at most once
    long preempted = preemptions();
    const auto wanted = [&] {
      const uint64_t state = state_.load();
      return ((state & kOpen) && (state >> 32) != seen) || stop_.load();
    };
    for (;;) {
      if (!spin(kHelperSpin, wanted)) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1);
        work_there_.wait(lock, wanted);
        sleepers_.fetch_sub(1);
        preempted = preemptions();
      }
      if (stop_.load()) return;
      uint64_t state = state_.load();
      if ((state & kOpen) && (state >> 32) != seen && state_.compare_exchange_strong(state, state + 1)) {
        seen = state >> 32;
        help(&preempted);
      }
    }
  }

  void start() {
    started_ = true;
    // Signals belong to the threads of the program, Python's above all.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      for (int i = 1; i < threads(); ++i) {
        helpers_.emplace_back([this] {
#if defined(__linux__)
          cpu_set_t allowed;  // the process's, not those of the thread that happened to call first
          if (sched_getaffinity(getpid(), sizeof allowed, &allowed) == 0) sched_setaffinity(0, sizeof allowed, &allowed);
          pthread_setname_np(pthread_self(), "slipstream");
#endif
          helper();
        });
      }
    } catch (const std::system_error&) {
      // The system grants no more threads: those that exist do the work.
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void stop() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_.store(true);
    }
    work_there_.notify_all();
    for (std::thread& thread : helpers_) thread.join();
    helpers_.clear();
    stop_.store(false);
    started_ = false;
  }

  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<bool> busy_{false};  // whoever set it owns what follows
  std::atomic<int> threads_;
  ChunkFunction fn_ = nullptr;
  void* context_ = nullptr;
  int64_t chunks_ = 0;
  bool started_ = false;
  Clock::time_point alone_until_{};
  microseconds alone_for_ = kFirstAlone;
  std::vector<std::thread> helpers_;

  alignas(64) std::mutex mutex_;
  std::condition_variable work_there_, helpers_left_;
  std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false}, stop_{false};
  bool lost_processor_ = false;
};

int first_threads() {
  const char* wanted = std::getenv("SLIPSTREAM_THREADS");
  const int count = wanted ? std::atoi(wanted) : 0;
  return count > 0 ? count : available_processors();
}

// Never destroyed: helpers may outlive static destruction.
std::atomic<Pool*> current{nullptr};

// The helpers do not exist in the child, and the locks may be in any state: leave all of it behind.
void forget_in_child() {
  Pool* parent = current.load();
  if (parent) current.store(new Pool(parent->threads()));
}

Pool& pool() {
  Pool* there = current.load(std::memory_order_acquire);
  if (there) return *there;
  static std::once_flag once;
  std::call_once(once, [] {
    current.store(new Pool(first_threads()), std::memory_order_release);
    pthread_atfork(nullptr, nullptr, forget_in_child);
  });
  return *current.load(std::memory_order_acquire);
}

}  // namespace

void parallel(int64_t chunks, ChunkFunction fn, void* context) {
  const FlushDenormals flush;
  pool().run(chunks, fn, context);
}

int threads() { return pool().threads(); }

void set_threads(int count) { pool().set_threads(count > 0 ? count : first_threads()); }

}  // namespace slipstream

SLIPSTREAM_ENTRY int slipstream_threads() { return slipstream::threads(); }

SLIPSTREAM_ENTRY void slipstream_set_threads(int count) { slipstream::set_threads(count); }

SLIPSTREAM_ENTRY int slipstream_available_processors() { return slipstream::available_processors(); }

// A workload to test and time the pool with: adds 1 to each of counts[0 .. chunks - 1], after `work` steps of arithmetic.
SLIPSTREAM_ENTRY void slipstream_parallel_count(int64_t chunks, int64_t work, uint32_t* counts) {
  slipstream::parallel(chunks, [=](int64_t chunk) {
    volatile uint32_t steps = 0;
    for (int64_t i = 0; i < work; ++i) steps = steps + 1;
    counts[chunk] += 1;
  });
}

// What becomes of half the smallest normal number inside chunks: each of out[0 .. chunks - 1] gets tiny / 2.
SLIPSTREAM_ENTRY void slipstream_parallel_halve(int64_t chunks, float tiny, float* out) {
  slipstream::parallel(chunks, [=](int64_t chunk) {
    volatile float value = tiny;
    out[chunk] = value * 0.5f;
  });
}

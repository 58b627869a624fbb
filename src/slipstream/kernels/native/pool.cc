#include "pool.h"

#include "entry.h"
#include "thread_place.h"

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

#include <signal.h>
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
// After this long without a word from a thread whose chunk is the last, its clock is read, and once more after kProof:
// if it has stood still, a neighbour has the thread's processor, perhaps for milliseconds.
constexpr microseconds kPatience{20}, kProof{15};
constexpr int64_t kStoodStill = 2000;  // nanoseconds
// How long a caller sleeps for helpers that it has given its processor, before it looks again.
constexpr microseconds kCallerSleep{5000};

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
  FlushDenormals() : before_(_mm_getcsr()) {
    if ((before_ & kFlush) != kFlush) _mm_setcsr(before_ | kFlush);
  }
  ~FlushDenormals() {
    if ((before_ & kFlush) != kFlush) _mm_setcsr(before_);
  }

 private:
  static constexpr unsigned kFlush = 0x8040;
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
  for (int i = 0; i < 16; ++i) {
    if (done()) return true;
    pause();
  }
  const Clock::time_point end = Clock::now() + limit;
  do {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      pause();
    }
  } while (Clock::now() < end);
  return false;
}

struct alignas(64) Helper {
  std::thread thread;
  clockid_t clock = CLOCK_MONOTONIC;  // of processor time; set by the caller that starts the helper
  int64_t clock_before = 0;           // the caller's note
  std::atomic<int> processor{-1};     // where it was when it went to sleep
  std::atomic<bool> working{false};   // at chunks
  std::atomic<bool> asleep{false};
  std::atomic<bool> moved{false};     // a caller has confined it to the caller's processor
};

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
    if (!started_) start();
    fn_ = fn;
    context_ = context;
    chunks_ = chunks;
    caller_ = pthread_self();
    caller_clock_.store(processor_clock(caller_), std::memory_order_relaxed);
    next_.store(0, std::memory_order_relaxed);
    const uint64_t generation = (state_.load(std::memory_order_relaxed) >> 32) + 1;
    state_.store(generation << 32 | kOpen);
    if (sleepers_.load() != 0) wake(chunks - 1);
    work();
    if (state_.fetch_and(~kOpen) & kHelpers) await_helpers();
    if (moving_.load() != kNobody) settle();
    busy_.store(false, std::memory_order_release);
  }

 private:
  // state_: generation (32 bits), whether helpers may still join, how many have joined and not left.
  static constexpr uint64_t kOpen = 1u << 31, kHelpers = kOpen - 1;
  // moving_: whether a helper is moving the caller, or has done so.
  static constexpr int kNobody = 0, kBeingMoved = 1, kMoved = 2;

  void work() {
    for (int64_t chunk; (chunk = next_.fetch_add(1, std::memory_order_relaxed)) < chunks_;) fn_(context_, chunk);
  }

  // Pairs with helper()'s sleep: either the caller sees the sleeper, or the sleeper sees the open state.
  void wake(int64_t wanted) {
    { std::lock_guard<std::mutex> lock(mutex_); }
    // A helper wakes up where it was, even if the caller has that processor by now: each would stop the other.
    const int here = processor_here();
    for (const auto& helper : helpers_) {
      if (helper->asleep.load(std::memory_order_relaxed) && helper->processor.load(std::memory_order_relaxed) == here) {
        place_elsewhere(helper->thread.native_handle(), here);
        helper->processor.store(-1, std::memory_order_relaxed);
      }
    }
    if (wanted >= sleepers_.load(std::memory_order_relaxed)) {
      work_there_.notify_all();
    } else {
      for (int64_t i = 0; i < wanted; ++i) work_there_.notify_one();
    }
  }

  // Lets a helper run on any processor but `here`, if there is one for every thread.
  void place_elsewhere(pthread_t helper, int here) {
    confine(helper, threads() <= count(allowed_) ? without(allowed_, here) : allowed_);
  }

  // The caller has no chunk left. A helper that has one, but whose processor a neighbour has taken, gets the caller's: it
  // then needs as long as its chunk does, and not until the neighbour's time is over.
  void await_helpers() {
    const auto left = [this] { return (state_.load() & kHelpers) == 0; };
    if (spin(kPatience, left)) return;
    for (;;) {
      for (const auto& helper : helpers_) helper->clock_before = nanoseconds(helper->clock);
      if (spin(kProof, left)) return;
      bool moved = false;
      const int here = processor_here();
      for (const auto& helper : helpers_) {
        if (!helper->working.load() || nanoseconds(helper->clock) - helper->clock_before > kStoodStill) continue;
        if (!contains(allowed_, here) || !confine(helper->thread.native_handle(), only(here))) continue;
        helper->moved.store(true);
        moved = true;
      }
      if (!moved) continue;
      std::unique_lock<std::mutex> lock(mutex_);
      caller_sleeps_.store(true);
      // (By the system's clock: the thread sanitizer does not know the other way of waiting.)
      const bool done = helpers_left_.wait_until(lock, std::chrono::system_clock::now() + kCallerSleep, left);
      caller_sleeps_.store(false);
      if (done) return;
    }
  }

  // The same the other way round: the helper has found no chunk left, and the caller does not return. If its processor is
  // taken, it gets the helper's.
  void rescue_caller(uint64_t seen) {
    const auto over = [&] { return state_.load() != (seen << 32 | kOpen); };  // other helpers are at work, or it is closed
    const clockid_t clock = caller_clock_.load(std::memory_order_relaxed);
    const int64_t before = nanoseconds(clock);
    if (spin(kProof, over) || nanoseconds(clock) - before > kStoodStill) return;
    int nobody = kNobody;
    if (!moving_.compare_exchange_strong(nobody, kBeingMoved)) return;
    // From here on the caller cannot leave this region, if it has not yet.
    const int here = processor_here();
    const bool possible = !over() && processors_of(caller_, &caller_processors_) && contains(caller_processors_, here);
    if (!possible || !confine(caller_, only(here))) {
      moving_.store(kNobody);
      return;
    }
    moving_.store(kMoved);
    place_elsewhere(pthread_self(), here);
  }

  // The caller was moved: from now on it may run again wherever it could.
  void settle() {
    int how;
    while ((how = moving_.load()) == kBeingMoved) std::this_thread::yield();
    if (how == kMoved) confine(caller_, caller_processors_);
    moving_.store(kNobody);
  }

  void help(Helper& me) {
    me.working.store(true, std::memory_order_relaxed);
    work();
    me.working.store(false, std::memory_order_relaxed);
    const uint64_t before = state_.fetch_sub(1);
    if ((before & (kOpen | kHelpers)) != 1 || !caller_sleeps_.load()) return;
    std::lock_guard<std::mutex> lock(mutex_);
    helpers_left_.notify_one();
  }

  void helper(Helper& me) {
    const FlushDenormals flush;
    uint64_t seen = 0;  // the generation this helper has worked at: it joins each at most once
    const auto wanted = [&] {
      const uint64_t state = state_.load();
      return ((state & kOpen) && (state >> 32) != seen) || me.moved.load(std::memory_order_relaxed) || stop_.load();
    };
    for (;;) {
      if (!spin(kPatience, wanted)) {
        if (state_.load() == (seen << 32 | kOpen)) rescue_caller(seen);
        if (!spin(kHelperSpin - kPatience, wanted)) sleep(me, wanted);
      }
      if (stop_.load()) return;
      if (me.moved.load(std::memory_order_relaxed)) {
        me.moved.store(false);
        place_elsewhere(pthread_self(), processor_here());
      }
      uint64_t state = state_.load();
      if ((state & kOpen) && (state >> 32) != seen && state_.compare_exchange_strong(state, state + 1)) {
        seen = state >> 32;
        help(me);
      }
    }
  }

  template <class Wanted>
  void sleep(Helper& me, Wanted&& wanted) {
    std::unique_lock<std::mutex> lock(mutex_);
    me.processor.store(processor_here(), std::memory_order_relaxed);
    me.asleep.store(true, std::memory_order_relaxed);
    sleepers_.fetch_add(1);
    work_there_.wait(lock, wanted);
    sleepers_.fetch_sub(1);
    me.asleep.store(false, std::memory_order_relaxed);
  }

  void start() {
    started_ = true;
    // Not those of the thread that happened to call first.
    if (!processors_of_process(&allowed_)) processors_of(pthread_self(), &allowed_);
    // Signals belong to the threads of the program, Python's above all.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      for (int i = 1; i < threads(); ++i) {
        auto helper = std::make_unique<Helper>();
        Helper* const me = helper.get();
        me->thread = std::thread([this, me] {
          confine(pthread_self(), allowed_);
#if defined(__linux__)
          pthread_setname_np(pthread_self(), "slipstream");
#endif
          this->helper(*me);
        });
        me->clock = processor_clock(me->thread.native_handle());
        helpers_.push_back(std::move(helper));
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
    for (const auto& helper : helpers_) helper->thread.join();
    helpers_.clear();
    stop_.store(false);
    started_ = false;
  }

  alignas(64) std::atomic<uint64_t> state_{0};
  // Written by the caller, who has busy_, before it opens state_; a helper that has joined may read.
  ChunkFunction fn_ = nullptr;
  void* context_ = nullptr;
  int64_t chunks_ = 0;
  std::atomic<int64_t> next_{0};
  pthread_t caller_{};

  alignas(64) std::atomic<bool> busy_{false};
  std::atomic<int> threads_;
  std::atomic<int> sleepers_{0};
  std::atomic<int> moving_{kNobody};
  std::atomic<clockid_t> caller_clock_{CLOCK_MONOTONIC};
  bool started_ = false;
  std::vector<std::unique_ptr<Helper>> helpers_;
  Processors allowed_{}, caller_processors_{};

  alignas(64) std::mutex mutex_;
  std::condition_variable work_there_, helpers_left_;
  std::atomic<bool> caller_sleeps_{false}, stop_{false};
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

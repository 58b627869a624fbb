// Where threads run: which processor, whether they are running at all, and moving them. Without Linux nothing is known,
// and nothing moves.
#pragma once

#include <pthread.h>
#include <time.h>

#include <cstdint>
#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#endif

namespace slipstream {

#if defined(__linux__)

using Processors = cpu_set_t;

// The processor that runs the calling thread.
inline int processor_here() { return sched_getcpu(); }

// The main thread's mask is the process's: the calling thread may have been pinned by its owner.
inline bool processors_of_process(Processors* set) { return sched_getaffinity(getpid(), sizeof *set, set) == 0; }

inline bool processors_of(pthread_t thread, Processors* set) { return pthread_getaffinity_np(thread, sizeof *set, set) == 0; }

// A thread that waits for a processor which another thread has is moved at once.
inline bool confine(pthread_t thread, const Processors& set) { return pthread_setaffinity_np(thread, sizeof set, &set) == 0; }

inline bool contains(const Processors& set, int processor) {
  return processor >= 0 && processor < CPU_SETSIZE && CPU_ISSET(static_cast<size_t>(processor), &set);
}

inline Processors only(int processor) {
  Processors set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(processor), &set);
  return set;
}

// `set` less one processor, if that leaves any.
inline Processors without(Processors set, int processor) {
  if (contains(set, processor) && CPU_COUNT(&set) > 1) CPU_CLR(static_cast<size_t>(processor), &set);
  return set;
}

inline int count(const Processors& set) { return CPU_COUNT(&set); }

#else

struct Processors {};
inline int processor_here() { return -1; }
inline bool processors_of_process(Processors*) { return false; }
inline bool processors_of(pthread_t, Processors*) { return false; }
inline bool confine(pthread_t, const Processors&) { return false; }
inline bool contains(const Processors&, int) { return false; }
inline Processors only(int) { return {}; }
inline Processors without(Processors set, int) { return set; }
inline int count(const Processors&) { return 0; }

#endif

// A thread's clock of processor time; it stands still while the thread does not run.
inline clockid_t processor_clock(pthread_t thread) {
#if defined(__linux__)
  clockid_t clock;
  if (pthread_getcpuclockid(thread, &clock) == 0) return clock;
#else
  (void)thread;
#endif
  return CLOCK_MONOTONIC;  // never stands still: the thread is taken to run
}

inline int64_t nanoseconds(clockid_t clock) {
  timespec time;
  if (clock_gettime(clock, &time) != 0) clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * int64_t{1000000000} + time.tv_nsec;
}

}  // namespace slipstream

// One thread pool for all native kernels of the process.
//
// `parallel(chunks, fn)` calls fn(0) .. fn(chunks - 1), each exactly once, in any order and on any thread, and returns when
// all have returned. Chunks are handed out one by one, so a slow or late helper only gets fewer of them.
//
// Guarantees:
// - Helpers are optional. The caller works too, and waits only for chunks that a helper has really begun. A helper that
//   wakes up late finds nothing to do; it is never waited for.
// - Any thread may call, at any time. The pool serves one caller; a second one, or a call made inside a chunk, does its
//   chunks alone on its own thread.
// - Denormals are flushed to zero inside chunks, on the caller's thread as well; its mode is restored afterwards.
// - After fork() the child has a pool of its own. (Forking inside a chunk is not supported.)
// - Beside a busy process: a thread that loses its processor inside a chunk, when the others have none left, is moved to the
//   processor of one that waits for it. Linux only. (The caller's mask of processors is narrowed while that lasts.)
// Chunks must not throw.
#pragma once

#include <cstdint>
#include <type_traits>

namespace slipstream {

using ChunkFunction = void (*)(void* context, int64_t chunk);

void parallel(int64_t chunks, ChunkFunction fn, void* context);

template <class F>
void parallel(int64_t chunks, F&& fn) {
  using Function = std::remove_reference_t<F>;
  parallel(
      chunks, [](void* context, int64_t chunk) { (*static_cast<Function*>(context))(chunk); },
      const_cast<void*>(static_cast<const void*>(&fn)));
}

// Threads that work at most, the caller included. At first SLIPSTREAM_THREADS, or else available_processors().
int threads();

// Waits for work in flight; not to be called inside a chunk. Less than 1: back to the first value.
void set_threads(int count);

// Processors in the process's affinity mask, or fewer if a control group grants less time than that. At least 1.
int available_processors();

}  // namespace slipstream

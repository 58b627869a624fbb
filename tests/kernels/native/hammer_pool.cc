// Hammers the thread pool from all sides, to be run under the thread sanitizer: scripts/sanitize builds and runs it.
// `hammer_pool planted` commits a race instead, which proves that the sanitizer is watching.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "pool.h"

namespace {

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "hammer_pool: %s\n", what);
  std::_Exit(1);
}

// Plain counters, not atomic ones: the pool alone must order what chunks write and what the caller then reads.
void regions(int repeats, int64_t chunks, int work) {
  std::vector<uint32_t> counts(static_cast<size_t>(chunks));
  for (int i = 0; i < repeats; ++i) {
    slipstream::parallel(chunks, [&](int64_t chunk) {
      volatile int steps = 0;
      for (int k = 0; k < work; ++k) steps = steps + 1;
      ++counts[static_cast<size_t>(chunk)];
    });
    for (const uint32_t count : counts) require(count == static_cast<uint32_t>(i + 1), "a chunk was not called once");
  }
}

void nested(int repeats) {
  for (int i = 0; i < repeats; ++i) {
    uint32_t counts[6][5] = {};
    slipstream::parallel(6, [&](int64_t outer) {
      slipstream::parallel(5, [&](int64_t inner) { ++counts[outer][inner]; });
    });
    for (const auto& row : counts)
      for (const uint32_t count : row) require(count == 1, "a nested chunk was not called once");
  }
}

void pauses(int repeats) {
  for (int i = 0; i < repeats; ++i) {
    std::this_thread::sleep_for(std::chrono::microseconds(100 * (i % 5)));  // helpers spin, or sleep, or are about to
    regions(1, 16, 200);
  }
}

void forks(int repeats) {
  for (int i = 0; i < repeats; ++i) {
    regions(3, 8, 100);
    const pid_t child = fork();
    if (child == 0) {
      regions(20, 8, 100);
      _exit(0);
    }
    int status = 0;
    require(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0,
            "a forked child failed");
    regions(3, 8, 100);
  }
}

// Processes that take processors, so that threads of the pool stop inside of chunks and are moved.
void beside_neighbours(int count) {
  std::vector<pid_t> neighbours;
  for (int i = 0; i < count; ++i) {
    const pid_t child = fork();
    if (child == 0)
      for (volatile int forever = 0;;) forever = forever + 1;
    require(child > 0, "fork failed");
    neighbours.push_back(child);
  }
  for (const int threads : {2, 4}) {
    slipstream::set_threads(threads);
    regions(150, 7, 100000);
  }
  for (const pid_t child : neighbours) {
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
  }
}

}  // namespace

int main(int count, char** arguments) {
  slipstream::set_threads(3);
  if (count > 1 && !std::strcmp(arguments[1], "planted")) {
    int shared = 0;
    slipstream::parallel(100000, [&](int64_t) { ++shared; });
    return 0;
  }
  forks(5);  // before any other thread is there: a child has only the thread that forked
  beside_neighbours(2);
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) {
    callers.emplace_back([] {
      regions(1500, 9, 50);
      nested(200);
      pauses(200);
    });
  }
  for (int i = 0; i < 100; ++i) {
    slipstream::set_threads(1 + i % 4);
    regions(20, 7, 50);
  }
  for (std::thread& caller : callers) caller.join();
  for (const int threads : {2, 4, 8}) {
    slipstream::set_threads(threads);
    regions(3000, 33, 20);
    pauses(100);
  }
  std::puts("the pool held");
  return 0;
}

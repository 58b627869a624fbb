#include "trace.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <vector>

#include "entry.h"

namespace slipstream {
namespace {

constexpr size_t kMostCalls = 1 << 20;  // a trace that nobody reads must not fill the memory

std::atomic<bool> on{false};
std::mutex mutex;
std::vector<Call>& calls() {
  static std::vector<Call>& kept = *new std::vector<Call>;  // never destroyed: handlers may outlive static destruction
  return kept;
}

}  // namespace

bool tracing() { return on.load(std::memory_order_relaxed); }

void write_down(const Call& call) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (calls().size() < kMostCalls) calls().push_back(call);
}

}  // namespace slipstream

// Forgets what was written down, and writes down calls from now on, or no more.
SLIPSTREAM_ENTRY void slipstream_trace(int on) {
  const std::lock_guard<std::mutex> lock(slipstream::mutex);
  slipstream::calls().clear();
  slipstream::on = on != 0;
}

// Copies the first `most` calls written down so far; returns how many there are.
SLIPSTREAM_ENTRY int64_t slipstream_traced(slipstream::Call* to, int64_t most) {
  const std::lock_guard<std::mutex> lock(slipstream::mutex);
  const auto& kept = slipstream::calls();
  std::copy_n(kept.begin(), std::min<int64_t>(most, static_cast<int64_t>(kept.size())), to);
  return static_cast<int64_t>(kept.size());
}

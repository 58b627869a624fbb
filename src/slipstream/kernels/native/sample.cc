#include "sample.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>

#include "entry.h"
#include "isa.h"
#include "pool.h"

namespace slipstream {
namespace {

Draw draw() {
#if defined(__x86_64__)
  if (isa() == Isa::avx512vnni) return kAvx512Draw;
  if (isa() == Isa::avx2) return kAvx2Draw;
#endif
  return kPortableDraw;
}

// Memory of the calling thread, kept for the next call; null if there is none.
float* scratch_of(int64_t floats) {
  static thread_local std::unique_ptr<float[]> memory;
  static thread_local int64_t held = 0;
  if (floats > held) {
    memory.reset(new (std::nothrow) float[floats]);
    held = memory ? floats : 0;
  }
  return memory.get();
}

}  // namespace

void sample(const float* logits, int64_t count, int64_t vocab, const Wish* wishes, int32_t* tokens) {
  std::atomic<bool> exhausted{false};  // chunks must not throw
  parallel(count, [&](int64_t row) {
    float* scratch = wishes[row].temperature > 0 ? scratch_of(2 * vocab) : nullptr;
    if (wishes[row].temperature > 0 && !scratch) {
      exhausted = true;
      return;
    }
    tokens[row] = draw()(logits + row * vocab, vocab, wishes[row], scratch);
  });
  if (exhausted) throw std::bad_alloc();
}

}  // namespace slipstream

// The same from C, for tests. 0: done; 1: no memory.
SLIPSTREAM_ENTRY int slipstream_sample(const float* logits, int64_t count, int64_t vocab, const slipstream::Wish* wishes,
                                       int32_t* tokens) {
  try {
    slipstream::sample(logits, count, vocab, wishes, tokens);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

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

void noise_key(const uint32_t seed[2], int32_t position, uint32_t key[2]) {
  constexpr int kRotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t parts[3] = {seed[0], seed[1], seed[0] ^ seed[1] ^ 0x1BD11BDAu};
  uint32_t a = parts[0], b = static_cast<uint32_t>(position) + parts[1];
  for (uint32_t group = 0; group < 5; ++group) {
    for (const int by : kRotations[group % 2]) {
      a += b;
      b = (b << by | b >> (32 - by)) ^ a;
    }
    a += parts[(group + 1) % 3];
    b += parts[(group + 2) % 3] + group + 1;
  }
  key[0] = a, key[1] = b;
}

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

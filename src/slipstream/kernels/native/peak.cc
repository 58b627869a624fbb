#include "peak.h"

#include <algorithm>
#include <atomic>

#include "entry.h"
#include "pool.h"

namespace slipstream {
namespace {

// What a compiler makes of plain loops is the ceiling of kernels that are plain loops.
constexpr int kWidth = 64;

int64_t integers(int64_t rounds) {
  int32_t sum[kWidth] = {};
  uint8_t u = 3;
  int8_t q = -5;
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+r"(u), "+r"(q));  // or the compiler would do it once
    for (int i = 0; i < kWidth; ++i) sum[i] += static_cast<int32_t>(u) * q;
  }
  asm volatile("" ::"r"(sum) : "memory");
  return rounds * kWidth * 2;
}

int64_t floats(int64_t rounds) {
  float sum[kWidth] = {}, u = 0.5f, q = 1e-6f;
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+m"(u), "+m"(q));
    for (int i = 0; i < kWidth; ++i) sum[i] += u * q;
  }
  asm volatile("" ::"r"(sum) : "memory");
  return rounds * kWidth * 2;
}

const Peak& peak() {
#if defined(__x86_64__)
  if (isa() == Isa::avx512vnni) return kAvx512Peak;
  if (isa() == Isa::avx2) return kAvx2Peak;
#endif
  return kPortablePeak;
}

}  // namespace

const Peak kPortablePeak = {integers, floats};

}  // namespace slipstream

// Does `chunks` pieces of `rounds` rounds each on the pool's threads; returns the operations done.
SLIPSTREAM_ENTRY int64_t slipstream_multiply_in_registers(int floats, int64_t chunks, int64_t rounds) {
  using namespace slipstream;
  std::atomic<int64_t> done{0};
  parallel(chunks, [&](int64_t) { done += (floats ? peak().floats : peak().integers)(rounds); });
  return done;
}

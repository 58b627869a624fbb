// GCC 12 warns about its own intrinsics' undefined registers.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "peak.h"

namespace slipstream {
namespace {

constexpr int kSums = 12;  // enough that none waits for its last result
#define UNROLL _Pragma("GCC unroll 12")

int64_t integers(int64_t rounds) {
  __m512i sum[kSums];
  UNROLL for (int i = 0; i < kSums; ++i) sum[i] = _mm512_set1_epi32(i);
  __m512i u = _mm512_set1_epi8(3), q = _mm512_set1_epi8(-5);
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+v"(u), "+v"(q));  // or the compiler would do it once
    UNROLL for (int i = 0; i < kSums; ++i) sum[i] = _mm512_dpbusd_epi32(sum[i], u, q);
  }
  UNROLL for (int i = 0; i < kSums; ++i) asm volatile("" ::"v"(sum[i]));
  return rounds * kSums * 64 * 2;
}

int64_t floats(int64_t rounds) {
  __m512 sum[kSums];
  UNROLL for (int i = 0; i < kSums; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  __m512 u = _mm512_set1_ps(0.5f), q = _mm512_set1_ps(1e-6f);
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+v"(u), "+v"(q));
    UNROLL for (int i = 0; i < kSums; ++i) sum[i] = _mm512_fmadd_ps(u, q, sum[i]);
  }
  UNROLL for (int i = 0; i < kSums; ++i) asm volatile("" ::"v"(sum[i]));
  return rounds * kSums * 16 * 2;
}

}  // namespace

const Peak kAvx512Peak = {integers, floats};

}  // namespace slipstream

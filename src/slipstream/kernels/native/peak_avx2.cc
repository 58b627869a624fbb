#include <immintrin.h>

#include "peak.h"

namespace slipstream {
namespace {

constexpr int kSums = 12;
#define UNROLL _Pragma("GCC unroll 12")

int64_t integers(int64_t rounds) {
  __m256i sum[kSums];
  UNROLL for (int i = 0; i < kSums; ++i) sum[i] = _mm256_set1_epi32(i);
  __m256i u = _mm256_set1_epi8(3), q = _mm256_set1_epi8(-5);
  const __m256i one = _mm256_set1_epi16(1);
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+x"(u), "+x"(q));  // or the compiler would do it once
    UNROLL for (int i = 0; i < kSums; ++i) {
      __m256i pairs = _mm256_maddubs_epi16(u, q);
      asm volatile("" : "+x"(pairs));
      sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(pairs, one));
    }
  }
  UNROLL for (int i = 0; i < kSums; ++i) asm volatile("" ::"x"(sum[i]));
  return rounds * kSums * 32 * 2;
}

int64_t floats(int64_t rounds) {
  __m256 sum[kSums];
  UNROLL for (int i = 0; i < kSums; ++i) sum[i] = _mm256_set1_ps(static_cast<float>(i));
  __m256 u = _mm256_set1_ps(0.5f), q = _mm256_set1_ps(1e-6f);
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+x"(u), "+x"(q));
    UNROLL for (int i = 0; i < kSums; ++i) sum[i] = _mm256_fmadd_ps(u, q, sum[i]);
  }
  UNROLL for (int i = 0; i < kSums; ++i) asm volatile("" ::"x"(sum[i]));
  return rounds * kSums * 8 * 2;
}

}  // namespace

const Peak kAvx2Peak = {integers, floats};

}  // namespace slipstream

// Vectors of sixteen floats. Only for files compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq.
#pragma once

// GCC 12 takes the undefined vectors inside its own intrinsics for ours.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "half.h"

namespace slipstream {
namespace {

struct Simd {
  using F = __m512;
  static constexpr int lanes = 16;
  static constexpr int tile_rows = 6, tile_columns = 4;

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load(const Half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static F load(const Brain* p) {
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  }
  static F load(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void store(Half* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store(Brain* p, F x) {
    alignas(64) float values[lanes];
    _mm512_store_ps(values, x);
    for (int i = 0; i < lanes; ++i) convert::narrow(values[i], p + i);
  }
  static void store(int8_t* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)));
  }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static float sum(F x) { return _mm512_reduce_add_ps(x); }
  static float top(F x) { return _mm512_reduce_max_ps(x); }
  static F round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F scale2(F x, F n) { return _mm512_scalef_ps(x, n); }
  static void transpose(F* r) {
    F a[16], b[16];
    for (int i = 0; i < 8; ++i) {
      a[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
      a[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i) {  // b[4i + j]: column j of each 128-bit lane, of rows 4i .. 4i + 3
      b[4 * i] = _mm512_shuffle_ps(a[4 * i], a[4 * i + 2], 0x44);
      b[4 * i + 1] = _mm512_shuffle_ps(a[4 * i], a[4 * i + 2], 0xee);
      b[4 * i + 2] = _mm512_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0x44);
      b[4 * i + 3] = _mm512_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0xee);
    }
    for (int j = 0; j < 4; ++j) {
      const F low01 = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88), high01 = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xdd);
      const F low23 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88), high23 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xdd);
      r[j] = _mm512_shuffle_f32x4(low01, low23, 0x88);
      r[8 + j] = _mm512_shuffle_f32x4(low01, low23, 0xdd);
      r[4 + j] = _mm512_shuffle_f32x4(high01, high23, 0x88);
      r[12 + j] = _mm512_shuffle_f32x4(high01, high23, 0xdd);
    }
  }
};

}  // namespace
}  // namespace slipstream

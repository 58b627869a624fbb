// Activations before and after a product, with AVX-512: norm and quantization of a row, and the gate.
// GCC 12 warns about its own intrinsics' undefined registers.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include <cfloat>
#include <cstring>

#include "gemm_avx512.h"

namespace slipstream {
namespace {

using I32 = __m512i;
using F32 = __m512;

inline __mmask16 lanes(int64_t left) { return left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1); }

float norm_factor(const Input& input, const float* x) {
  F32 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
  int64_t k = 0;
  for (; k + 64 <= input.in; k += 64)
    for (int i = 0; i < 4; i++) {
      const F32 v = _mm512_loadu_ps(x + k + 16 * i);
      sums[i] = _mm512_fmadd_ps(v, v, sums[i]);
    }
  for (; k < input.in; k += 16) {
    const F32 v = _mm512_maskz_loadu_ps(lanes(input.in - k), x + k);
    sums[0] = _mm512_fmadd_ps(v, v, sums[0]);
  }
  const F32 sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
  const float mean = _mm512_reduce_add_ps(sum) / static_cast<float>(input.in) + input.eps;
  return 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean)));
}

// Where word j of a row's group goes: R * 4 bytes apart.
inline void scatter(__m128i first, __m128i second, int8_t* to, int64_t R) {
  alignas(16) int32_t words[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(words), first);
  _mm_store_si128(reinterpret_cast<__m128i*>(words + 4), second);
  for (int j = 0; j < 8; j++) std::memcpy(to + j * R * 4, words + j, 4);
}

void quantize(F32 x, F32 y, const Activations& to, const Activations::Panel& panel, int64_t r, int64_t g) {
  // As integers, so that a value that is not a number is the largest: it must reach the scale.
  const I32 bits = _mm512_max_epi32(_mm512_castps_si512(_mm512_abs_ps(x)), _mm512_castps_si512(_mm512_abs_ps(y)));
  const float top = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(bits))));
  const float limit = to.exact ? kExactTop : kFastTop;
  const bool usable = top >= kSmallest && top <= FLT_MAX;
  const float scale = top < kSmallest ? 0.0f : top / limit;
  const F32 inverse = _mm512_set1_ps(usable ? limit / top : 0.0f);
  I32 a = _mm512_setzero_si512(), b = a;
  if (usable) a = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)), b = _mm512_cvtps_epi32(_mm512_mul_ps(y, inverse));
  const int64_t R = panel.rows, at = panel.first * to.groups + g * R + r;
  const int64_t bytes = panel.first * to.in + g * R * kGroup + r * 4;
  if (to.exact) {
    const I32 half = _mm512_set1_epi32(128), least = _mm512_set1_epi32(-127);
    const I32 high_a = _mm512_srai_epi32(_mm512_add_epi32(a, half), 8), high_b = _mm512_srai_epi32(_mm512_add_epi32(b, half), 8);
    const I32 upper_a = _mm512_slli_epi32(high_a, 8), upper_b = _mm512_slli_epi32(high_b, 8);
    const I32 low_a = _mm512_max_epi32(_mm512_sub_epi32(a, upper_a), least);
    const I32 low_b = _mm512_max_epi32(_mm512_sub_epi32(b, upper_b), least);
    scatter(_mm512_cvtepi32_epi8(low_a), _mm512_cvtepi32_epi8(low_b), to.low + bytes, R);
    scatter(_mm512_cvtepi32_epi8(high_a), _mm512_cvtepi32_epi8(high_b), to.high + bytes, R);
    a = _mm512_add_epi32(upper_a, low_a), b = _mm512_add_epi32(upper_b, low_b);
  } else {
    scatter(_mm512_cvtepi32_epi8(a), _mm512_cvtepi32_epi8(b), to.high + bytes, R);
  }
  const int32_t first = _mm512_reduce_add_epi32(a), sum = first + _mm512_reduce_add_epi32(b);
  to.scale[at] = scale;
  to.scaled_sum[at] = scale * static_cast<float>(sum);
  to.minus_sum[at] = -sum;
  to.minus_first[at] = -first;
}

inline F32 exp(F32 x) {  // relative error under 3e-7; results below exp(-80) are not needed
  x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-80.f)), _mm512_set1_ps(88.f));
  const F32 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  F32 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x);  // ln 2 in two parts
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
  F32 p = _mm512_set1_ps(1.f / 720);
  constexpr float coefficients[] = {1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f};
  for (const float c : coefficients) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  return _mm512_scalef_ps(p, n);
}

}  // namespace

void prepare_avx512(const Input& input, const Activations& to, int64_t row) {
  const float* x = input.x + row * input.in;
  const Activations::Panel panel = to.panel_of(row);
  const int64_t r = row - panel.first;
  const F32 factor = _mm512_set1_ps(input.norm ? norm_factor(input, x) : 1.0f), offset = _mm512_set1_ps(input.norm_offset);
  const auto value = [&](int64_t k, __mmask16 mask) {
    const F32 v = _mm512_maskz_loadu_ps(mask, x + k);
    if (!input.norm) return v;
    return _mm512_mul_ps(_mm512_mul_ps(v, factor), _mm512_add_ps(_mm512_maskz_loadu_ps(mask, input.norm + k), offset));
  };
  if (to.plain) {
    float* values = to.values + panel.first * to.in + r;
    for (int64_t k = 0; k < input.in; k += 16) {
      alignas(64) float part[16];
      _mm512_store_ps(part, value(k, lanes(input.in - k)));
      for (int64_t i = 0; i < 16 && k + i < input.in; i++) values[(k + i) * panel.rows] = part[i];
    }
  }
  if (!to.quantized) return;
  for (int64_t g = 0; g < to.groups; g++)
    quantize(value(g * kGroup, 0xffff), value(g * kGroup + 16, 0xffff), to, panel, r, g);
}

void gate_avx512(Gate gate, float* g, const float* u, int64_t n) {
  const F32 one = _mm512_set1_ps(1.f);
  for (int64_t i = 0; i < n; i += 16) {
    const F32 x = _mm512_loadu_ps(g + i);
    F32 z = x;
    if (gate == Gate::gelu_tanh) {  // x * (1 + tanh(t)) / 2 = x / (1 + exp(-2 t))
      const F32 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
      z = _mm512_mul_ps(_mm512_set1_ps(1.5957691216f), _mm512_fmadd_ps(_mm512_set1_ps(0.044715f), cube, x));
    }
    const F32 gated = _mm512_div_ps(x, _mm512_add_ps(one, exp(_mm512_sub_ps(_mm512_setzero_ps(), z))));
    _mm512_storeu_ps(g + i, _mm512_mul_ps(gated, _mm512_loadu_ps(u + i)));
  }
}

}  // namespace slipstream

// Activations before and after a product, with AVX2: norm and quantization of a row, and the gate.
#include <immintrin.h>

#include <cfloat>

#include "gemm_avx2.h"

namespace slipstream {
namespace {

using I32 = __m256i;
using F32 = __m256;

float sum_of(F32 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

int32_t sum_of(I32 v) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

int32_t largest_of(I32 v) {
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
}

float norm_factor(const Input& input, const float* x) {
  F32 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  int64_t k = 0;
  for (; k + 32 <= input.in; k += 32)
    for (int i = 0; i < 4; i++) {
      const F32 v = _mm256_loadu_ps(x + k + 8 * i);
      sums[i] = _mm256_fmadd_ps(v, v, sums[i]);
    }
  float sum = sum_of(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
  for (; k < input.in; k++) sum += x[k] * x[k];
  return 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(sum / static_cast<float>(input.in) + input.eps)));
}

// 32 small integers as bytes.
void put(const I32 (&v)[4], int8_t* to) {
  const I32 packed = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
  // The packing works within halves of a register; this puts the words in order again.
  const I32 order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<I32*>(to), _mm256_permutevar8x32_epi32(packed, order));
}

void quantize(const F32 (&x)[4], const Activations& to, const Activations::Panel& panel, int64_t r, int64_t g) {
  // As integers, so that a value that is not a number is the largest: it must reach the scale.
  I32 bits = _mm256_setzero_si256();
  for (const F32 v : x) bits = _mm256_max_epi32(bits, _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fffffff)));
  const float top = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(largest_of(bits))));
  const float limit = to.exact ? kExactTop : kFastTop;
  const bool usable = top >= kSmallest && top <= FLT_MAX;
  const float scale = top < kSmallest ? 0.0f : top / limit;
  const F32 inverse = _mm256_set1_ps(usable ? limit / top : 0.0f);
  I32 q[4];
  for (int i = 0; i < 4; i++) q[i] = usable ? _mm256_cvtps_epi32(_mm256_mul_ps(x[i], inverse)) : _mm256_setzero_si256();
  const int64_t at = panel.first * to.groups + g * panel.rows + r;
  int8_t* numbers = to.numbers + at * to.number_bytes();
  if (to.exact) {
    I32 high[4], low[4];
    for (int i = 0; i < 4; i++) {
      high[i] = _mm256_srai_epi32(_mm256_add_epi32(q[i], _mm256_set1_epi32(128)), 8);
      const I32 upper = _mm256_slli_epi32(high[i], 8);
      low[i] = _mm256_max_epi32(_mm256_sub_epi32(q[i], upper), _mm256_set1_epi32(-127));
      q[i] = _mm256_add_epi32(upper, low[i]);
    }
    put(high, numbers);
    put(low, numbers + kGroup);
  } else {
    put(q, numbers);
  }
  const int32_t first = sum_of(_mm256_add_epi32(q[0], q[1])), sum = first + sum_of(_mm256_add_epi32(q[2], q[3]));
  to.facts[at] = {scale, scale * static_cast<float>(sum), -sum, -first};
}

F32 exp(F32 x) {  // relative error under 3e-7; results below exp(-80) are not needed
  x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-80.f)), _mm256_set1_ps(88.f));
  const F32 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  F32 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693145752f), x);  // ln 2 in two parts
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(1.42860677e-6f), r);
  F32 p = _mm256_set1_ps(1.f / 720);
  constexpr float coefficients[] = {1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f};
  for (const float c : coefficients) p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
  const I32 power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

void prepare_row(const Input& input, const Activations& to, int64_t row) {
  const float* x = input.x + row * input.in;
  const Activations::Panel panel = to.panel_of(row);
  const int64_t r = row - panel.first;
  const float factor = input.norm ? norm_factor(input, x) : 1.0f;
  if (to.plain) {
    float* values = to.values + panel.first * to.in + r;
    for (int64_t k = 0; k < input.in; k++)
      values[k * panel.rows] = input.norm ? x[k] * factor * (input.norm[k] + input.norm_offset) : x[k];
  }
  if (!to.quantized) return;
  const F32 factors = _mm256_set1_ps(factor), offset = _mm256_set1_ps(input.norm_offset);
  for (int64_t g = 0; g < to.groups; g++) {
    F32 group[4];
    for (int i = 0; i < 4; i++) {
      const int64_t k = g * kGroup + 8 * i;
      group[i] = _mm256_loadu_ps(x + k);
      if (!input.norm) continue;
      group[i] = _mm256_mul_ps(_mm256_mul_ps(group[i], factors), _mm256_add_ps(_mm256_loadu_ps(input.norm + k), offset));
    }
    quantize(group, to, panel, r, g);
  }
}

}  // namespace

void prepare_avx2(const Input& input, const Activations& to, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; row++) prepare_row(input, to, row);
}

void gate_avx2(Gate gate, float* g, const float* u, int64_t n) {
  const F32 one = _mm256_set1_ps(1.f);
  for (int64_t i = 0; i < n; i += 8) {
    const F32 x = _mm256_loadu_ps(g + i);
    F32 z = x;
    if (gate == Gate::gelu_tanh) {  // x * (1 + tanh(t)) / 2 = x / (1 + exp(-2 t))
      const F32 cube = _mm256_mul_ps(_mm256_mul_ps(x, x), x);
      z = _mm256_mul_ps(_mm256_set1_ps(1.5957691216f), _mm256_fmadd_ps(_mm256_set1_ps(0.044715f), cube, x));
    }
    const F32 gated = _mm256_div_ps(x, _mm256_add_ps(one, exp(_mm256_sub_ps(_mm256_setzero_ps(), z))));
    _mm256_storeu_ps(g + i, _mm256_mul_ps(gated, _mm256_loadu_ps(u + i)));
  }
}

}  // namespace slipstream

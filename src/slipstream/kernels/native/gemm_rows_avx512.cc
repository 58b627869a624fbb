// Activations before and after a product, with AVX-512: norm and quantization of a row, and the gate.
// GCC 12 warns about its own intrinsics' undefined registers.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include <algorithm>
#include <cfloat>

#include "gemm_avx512.h"

namespace slipstream {
namespace {

using I32 = __m512i;
using F32 = __m512;

#define UNROLL _Pragma("GCC unroll 8")
#define INLINE inline __attribute__((always_inline))

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

// Four groups of a row at a time: one number for each.
using Four = __m128i;

// lane i of the result = op over the 16 lanes of v[i].
template <class Op>
inline Four reduce(const I32 (&v)[4], Op&& op) {
  const I32 ab = op(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
  const I32 cd = op(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
  const I32 all = op(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const I32 two = op(all, _mm512_shuffle_i32x4(all, all, 0xb1));
  return _mm512_castsi512_si128(op(two, _mm512_shuffle_i32x4(two, two, 0x4e)));
}

// The same sums, and those of the first 8 lanes alone.
inline Four sums(const I32 (&v)[4], Four* first) {
  const I32 ab = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
  const I32 cd = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
  const I32 all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const I32 two = _mm512_add_epi32(all, _mm512_shuffle_i32x4(all, all, 0xb1));
  *first = _mm512_castsi512_si128(two);
  return _mm_add_epi32(*first, _mm512_extracti32x4_epi32(two, 2));
}

// Four groups of one row: their numbers as bytes, and what belongs to a group.
struct Quantized {
  __m256i high[4], low[4];
  Four scale, scaled_sum, minus_sum, minus_first;
};

// x[2 * i], x[2 * i + 1]: the 32 values of group i.
template <bool Exact>
INLINE void quantize(const F32 (&x)[8], Quantized* to) {
  // As integers, so that a value that is not a number is the largest: it must reach the scale.
  I32 bits[4];
  UNROLL for (int i = 0; i < 4; i++)
    bits[i] = _mm512_max_epi32(_mm512_castps_si512(_mm512_abs_ps(x[2 * i])), _mm512_castps_si512(_mm512_abs_ps(x[2 * i + 1])));
  const __m128 top = _mm_castsi128_ps(reduce(bits, [](I32 a, I32 b) { return _mm512_max_epi32(a, b); }));
  const __m128 limit = _mm_set1_ps(Exact ? kExactTop : kFastTop);
  const __mmask8 small = _mm_cmp_ps_mask(top, _mm_set1_ps(kSmallest), _CMP_LT_OQ);
  const __mmask8 usable = _mm_cmp_ps_mask(top, _mm_set1_ps(FLT_MAX), _CMP_LE_OQ) & ~small;
  const __m128 scale = _mm_mask_div_ps(_mm_setzero_ps(), static_cast<__mmask8>(~small), top, limit);
  const __m512 inverse = _mm512_castps128_ps512(_mm_maskz_div_ps(usable, limit, top));
  I32 pairs[4];
  UNROLL for (int i = 0; i < 4; i++) {
    // A value that is not finite becomes the integer 0x80000000, whose lower half is zero.
    const F32 factor = _mm512_permutexvar_ps(_mm512_set1_epi32(i), inverse);
    const __m256i a = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(x[2 * i], factor)));
    const __m256i b = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(x[2 * i + 1], factor)));
    I32 q = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
    if constexpr (Exact) {
      const I32 high = _mm512_srai_epi16(_mm512_add_epi16(q, _mm512_set1_epi16(128)), 8), upper = _mm512_slli_epi16(high, 8);
      const I32 low = _mm512_max_epi16(_mm512_sub_epi16(q, upper), _mm512_set1_epi16(-127));
      to->high[i] = _mm512_cvtepi16_epi8(high), to->low[i] = _mm512_cvtepi16_epi8(low);
      q = _mm512_add_epi16(upper, low);
    } else {
      to->high[i] = _mm512_cvtepi16_epi8(q);
    }
    pairs[i] = _mm512_madd_epi16(q, _mm512_set1_epi16(1));
  }
  Four first;
  const Four sum = sums(pairs, &first);
  to->scale = _mm_castps_si128(scale);
  to->scaled_sum = _mm_castps_si128(_mm_mul_ps(scale, _mm_cvtepi32_ps(sum)));
  to->minus_sum = _mm_sub_epi32(_mm_setzero_si128(), sum);
  to->minus_first = _mm_sub_epi32(_mm_setzero_si128(), first);
}

INLINE void transpose(Four& a, Four& b, Four& c, Four& d) {
  const Four ab = _mm_unpacklo_epi32(a, b), AB = _mm_unpackhi_epi32(a, b);
  const Four cd = _mm_unpacklo_epi32(c, d), CD = _mm_unpackhi_epi32(c, d);
  a = _mm_unpacklo_epi64(ab, cd), b = _mm_unpackhi_epi64(ab, cd);
  c = _mm_unpacklo_epi64(AB, CD), d = _mm_unpackhi_epi64(AB, CD);
}

// Up to four rows of a panel with R rows: word j of row r lies at word j * R + r.
INLINE void store_words(const __m256i& a, const __m256i& b, const __m256i& c, const __m256i& d, int8_t* to, int64_t R, __mmask8 rows) {
  for (int half = 0; half < 2; half++) {
    const auto part = [&](const __m256i& v) { return half ? _mm256_extracti128_si256(v, 1) : _mm256_castsi256_si128(v); };
    Four words[4] = {part(a), part(b), part(c), part(d)};
    transpose(words[0], words[1], words[2], words[3]);
    UNROLL for (int j = 0; j < 4; j++) _mm_mask_storeu_epi32(to + (half * 4 + j) * R * 4, rows, words[j]);
  }
}

INLINE void store_numbers(Four a, Four b, Four c, Four d, void* to, int64_t R, __mmask8 rows, int64_t groups) {
  transpose(a, b, c, d);
  const Four numbers[4] = {a, b, c, d};
  for (int64_t g = 0; g < groups; g++) _mm_mask_storeu_epi32(static_cast<int32_t*>(to) + g * R, rows, numbers[g]);
}

// Groups [g, g + count) of rows [r, r + rows) of a panel.
template <bool Exact>
void store(const Quantized (&q)[4], const Activations& to, const Activations::Panel& panel, int64_t r, int rows, int64_t g, int64_t count) {
  const int64_t R = panel.rows, at = panel.first * to.groups + g * R + r;
  const __mmask8 mask = static_cast<__mmask8>((1 << rows) - 1);
  for (int64_t i = 0; i < count; i++) {
    const int64_t byte = panel.first * to.in + (g + i) * R * kGroup + r * 4;
    if (R == 1) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.high + byte), q[0].high[i]);
      if constexpr (Exact) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.low + byte), q[0].low[i]);
      continue;
    }
    store_words(q[0].high[i], q[1].high[i], q[2].high[i], q[3].high[i], to.high + byte, R, mask);
    if constexpr (Exact) store_words(q[0].low[i], q[1].low[i], q[2].low[i], q[3].low[i], to.low + byte, R, mask);
  }
  store_numbers(q[0].scale, q[1].scale, q[2].scale, q[3].scale, to.scale + at, R, mask, count);
  store_numbers(q[0].scaled_sum, q[1].scaled_sum, q[2].scaled_sum, q[3].scaled_sum, to.scaled_sum + at, R, mask, count);
  store_numbers(q[0].minus_sum, q[1].minus_sum, q[2].minus_sum, q[3].minus_sum, to.minus_sum + at, R, mask, count);
  store_numbers(q[0].minus_first, q[1].minus_first, q[2].minus_first, q[3].minus_first, to.minus_first + at, R, mask, count);
}

// A row of the input, normed as it is read.
class Row {
 public:
  Row() = default;
  Row(const Input& input, int64_t row)
      : x_(input.x + row * input.in), norm_(input.norm), in_(input.in), factor_(norm_ ? norm_factor(input, x_) : 1.0f), offset_(input.norm_offset) {}

  INLINE F32 at(int64_t k) const {  // k + 15 inputs must be there
    const F32 v = _mm512_loadu_ps(x_ + k);
    return norm_ ? normed(v, _mm512_loadu_ps(norm_ + k)) : v;
  }
  INLINE F32 end(int64_t k) const {  // zeros beyond the end
    const __mmask16 mask = k < in_ ? lanes(in_ - k) : 0;
    const F32 v = _mm512_maskz_loadu_ps(mask, x_ + k);
    return norm_ ? normed(v, _mm512_maskz_loadu_ps(mask, norm_ + k)) : v;
  }

 private:
  INLINE F32 normed(F32 v, F32 norm) const {
    return _mm512_mul_ps(_mm512_mul_ps(v, _mm512_set1_ps(factor_)), _mm512_add_ps(norm, _mm512_set1_ps(offset_)));
  }

  const float *x_ = nullptr, *norm_ = nullptr;
  int64_t in_ = 0;
  float factor_ = 1, offset_ = 0;
};

template <bool Exact>
void quantize_rows(const Row* x, const Activations& to, const Activations::Panel& panel, int64_t r, int rows) {
  Quantized q[4];
  for (int64_t g = 0; g < to.groups; g += 4) {
    const bool whole = g + 4 <= to.groups;
    for (int i = 0; i < rows; i++) {
      F32 values[8];
      if (whole)
        UNROLL for (int j = 0; j < 8; j++) values[j] = x[i].at(g * kGroup + 16 * j);
      else
        UNROLL for (int j = 0; j < 8; j++) values[j] = x[i].end(g * kGroup + 16 * j);
      quantize<Exact>(values, &q[i]);
    }
    store<Exact>(q, to, panel, r, rows, g, whole ? 4 : to.groups - g);
  }
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

void prepare_avx512(const Input& input, const Activations& to, int64_t first, int64_t last) {
  while (first < last) {
    const Activations::Panel panel = to.panel_of(first);
    const int64_t r = first - panel.first, left = std::min(last, panel.first + panel.rows) - first;
    const int rows = static_cast<int>(std::min<int64_t>(4, left));
    Row x[4];
    for (int i = 0; i < rows; i++) x[i] = Row(input, first + i);
    for (int i = 0; to.plain && i < rows; i++) {
      float* values = to.values + panel.first * to.in + r + i;
      for (int64_t k = 0; k < input.in; k += 16) {
        alignas(64) float part[16];
        _mm512_store_ps(part, x[i].end(k));
        for (int64_t j = 0; j < 16 && k + j < input.in; j++) values[(k + j) * panel.rows] = part[j];
      }
    }
    if (to.quantized) (to.exact ? quantize_rows<true> : quantize_rows<false>)(x, to, panel, r, rows);
    first += rows;
  }
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

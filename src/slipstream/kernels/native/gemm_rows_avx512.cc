// Activations before and after a product, with AVX-512: norm and quantization of a row, and the gate.
// GCC 12 warns about its own intrinsics' undefined registers.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

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

// lane i of the result = op over the four lanes at [i] of v's quarters.
template <class Op>
INLINE Four over_quarters(I32 v, Op&& op) {
  const I32 two = op(v, _mm512_shuffle_i32x4(v, v, 0xb1));
  return _mm512_castsi512_si128(op(two, _mm512_shuffle_i32x4(two, two, 0x4e)));
}

// lane i of the result = the largest of the 16 lanes of v[i].
INLINE Four largest(const I32 (&v)[4]) {
  const I32 ab = _mm512_max_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
  const I32 cd = _mm512_max_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
  const I32 all = _mm512_max_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  return over_quarters(all, [](I32 a, I32 b) { return _mm512_max_epi32(a, b); });
}

// lane i of the result = the sum of the lanes of v[i] that are first, or last, in their pair of pairs.
INLINE void sums(const I32 (&v)[4], Four* first, Four* last) {
  const auto add = [](I32 a, I32 b) { return _mm512_add_epi32(a, b); };
  const I32 ab = _mm512_unpacklo_epi32(v[0], v[1]), cd = _mm512_unpacklo_epi32(v[2], v[3]);
  const I32 AB = _mm512_unpackhi_epi32(v[0], v[1]), CD = _mm512_unpackhi_epi32(v[2], v[3]);
  *first = over_quarters(add(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd)), add);
  *last = over_quarters(add(_mm512_unpacklo_epi64(AB, CD), _mm512_unpackhi_epi64(AB, CD)), add);
}

INLINE void transpose(Four& a, Four& b, Four& c, Four& d) {
  const Four ab = _mm_unpacklo_epi32(a, b), AB = _mm_unpackhi_epi32(a, b);
  const Four cd = _mm_unpacklo_epi32(c, d), CD = _mm_unpackhi_epi32(c, d);
  a = _mm_unpacklo_epi64(ab, cd), b = _mm_unpackhi_epi64(ab, cd);
  c = _mm_unpacklo_epi64(AB, CD), d = _mm_unpackhi_epi64(AB, CD);
}

// x[2 * i], x[2 * i + 1]: the 32 values of group i. The first `count` groups are written, each R groups after the last.
template <bool Exact>
INLINE void quantize(const F32 (&x)[8], int8_t* numbers, Facts* facts, int64_t R, int64_t count) {
  // As integers, so that a value that is not a number is the largest: it must reach the scale.
  I32 bits[4];
  UNROLL for (int i = 0; i < 4; i++)
    bits[i] = _mm512_max_epi32(_mm512_castps_si512(_mm512_abs_ps(x[2 * i])), _mm512_castps_si512(_mm512_abs_ps(x[2 * i + 1])));
  const __m128 top = _mm_castsi128_ps(largest(bits)), limit = _mm_set1_ps(Exact ? kExactTop : kFastTop);
  const __mmask8 small = _mm_cmp_ps_mask(top, _mm_set1_ps(kSmallest), _CMP_LT_OQ);
  const __mmask8 usable = _mm_cmp_ps_mask(top, _mm_set1_ps(FLT_MAX), _CMP_LE_OQ) & ~small;
  const __m128 scale = _mm_maskz_div_ps(static_cast<__mmask8>(~small), top, limit);
  const F32 inverse = _mm512_castps128_ps512(_mm_maskz_div_ps(usable, limit, top));
  I32 q[4];
  UNROLL for (int i = 0; i < 4; i++) {
    const F32 factor = _mm512_permutexvar_ps(_mm512_set1_epi32(i), inverse);
    const auto rounded = [&](F32 v) { return _mm512_cvtps_epi32(_mm512_mul_ps(v, factor)); };
    q[i] = _mm512_packs_epi32(rounded(x[2 * i]), rounded(x[2 * i + 1]));  // in each quarter: 4 inputs of 0-15, 4 of 16-31
  }
  // Bytes are packed by quarters again: these put the words of four inputs in order.
  const I32 order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  if constexpr (Exact) {
    UNROLL for (int i = 0; i < 4; i++) {
      const I32 high = _mm512_srai_epi16(_mm512_add_epi16(q[i], _mm512_set1_epi16(128)), 8), upper = _mm512_slli_epi16(high, 8);
      const I32 low = _mm512_max_epi16(_mm512_sub_epi16(q[i], upper), _mm512_set1_epi16(-127));
      q[i] = _mm512_add_epi16(upper, low);
      if (i < count) _mm512_storeu_si512(numbers + i * R * 64, _mm512_permutexvar_epi32(order, _mm512_packs_epi16(high, low)));
    }
  } else {
    UNROLL for (int i = 0; i < 4; i += 2) {
      const I32 both = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(q[i], q[i + 1]));
      if (i < count) _mm256_storeu_si256(reinterpret_cast<__m256i*>(numbers + i * R * 32), _mm512_castsi512_si256(both));
      if (i + 1 < count) _mm256_storeu_si256(reinterpret_cast<__m256i*>(numbers + (i + 1) * R * 32), _mm512_extracti64x4_epi64(both, 1));
    }
  }
  UNROLL for (int i = 0; i < 4; i++) q[i] = _mm512_madd_epi16(q[i], _mm512_set1_epi16(1));
  Four first, last;
  sums(q, &first, &last);
  const Four sum = _mm_add_epi32(first, last), zero = _mm_setzero_si128();
  Four group[4] = {_mm_castps_si128(scale), _mm_castps_si128(_mm_mul_ps(scale, _mm_cvtepi32_ps(sum))), _mm_sub_epi32(zero, sum),
                   _mm_sub_epi32(zero, first)};
  transpose(group[0], group[1], group[2], group[3]);
  UNROLL for (int i = 0; i < 4; i++)
    if (i < count) _mm_storeu_si128(reinterpret_cast<Four*>(facts + i * R), group[i]);
}

// A row of the input, normed as it is read.
class Row {
 public:
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

  const float *x_, *norm_;
  int64_t in_;
  float factor_, offset_;
};

template <bool Exact>
void quantize_row(const Row& x, const Activations& to, const Activations::Panel& panel, int64_t r) {
  const int64_t R = panel.rows;
  Facts* facts = to.facts + panel.first * to.groups + r;
  int8_t* numbers = to.numbers + (panel.first * to.groups + r) * to.number_bytes();
  F32 values[8];
  int64_t g = 0;
  for (; g + 4 <= to.groups; g += 4) {
    UNROLL for (int j = 0; j < 8; j++) values[j] = x.at(g * kGroup + 16 * j);
    quantize<Exact>(values, numbers + g * R * to.number_bytes(), facts + g * R, R, 4);
  }
  if (g == to.groups) return;
  UNROLL for (int j = 0; j < 8; j++) values[j] = x.end(g * kGroup + 16 * j);
  quantize<Exact>(values, numbers + g * R * to.number_bytes(), facts + g * R, R, to.groups - g);
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
  for (int64_t row = first; row < last; row++) {
    const Activations::Panel panel = to.panel_of(row);
    const int64_t r = row - panel.first;
    const Row x(input, row);
    if (to.plain) {
      float* values = to.values + panel.first * to.in + r;
      for (int64_t k = 0; k < input.in; k += 16) {
        alignas(64) float part[16];
        _mm512_store_ps(part, x.end(k));
        for (int64_t j = 0; j < 16 && k + j < input.in; j++) values[(k + j) * panel.rows] = part[j];
      }
    }
    if (to.quantized) (to.exact ? quantize_row<true> : quantize_row<false>)(x, to, panel, r);
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

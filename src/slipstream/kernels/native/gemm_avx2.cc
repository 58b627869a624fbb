// Products with AVX2: tiles of 8 outputs by up to 4 rows. Bytes are multiplied into pairs of 16 bits, and as many pairs are
// added in 16 bits as the size of the weights' numbers allows.
#include <immintrin.h>

#include <cstring>
#include <utility>

#include "gemm_avx2.h"

namespace slipstream {
namespace {

constexpr int kRows = 4;
constexpr int kHalf = 8;  // outputs of a tile

#define UNROLL _Pragma("GCC unroll 8")
#define INLINE inline __attribute__((always_inline))

using I32 = __m256i;
using F32 = __m256;

INLINE I32 load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const I32*>(p)); }

INLINE I32 broadcast(const int8_t* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}

INLINE F32 halves(const uint8_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }

INLINE F32 bytes(const uint8_t* p, bool with_sign) {
  const __m128i b = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtepi32_ps(with_sign ? _mm256_cvtepi8_epi32(b) : _mm256_cvtepu8_epi32(b));
}

// Words of four products |u q| <= 2 * largest * 127 each that fit one sum of 16 bits; 1 means that numbers of 8 bits are
// multiplied with their sign: without it, two products would not fit.
constexpr int words_at_once(const Format& f) { return f.low == 512 ? 1 : f.high == 128 ? 2 : f.high == 64 ? 4 : 8; }

template <Kind K>
void unpack(const Weight& w, int64_t panel, const Unpacked& to) {
  constexpr Format f = format(K);
  const uint8_t* from = w.panel(panel);
  const I32 nibble = _mm256_set1_epi8(15), fifth = _mm256_set1_epi8(16), pair = _mm256_set1_epi8(0x30);
  for (int64_t g = 0; g < w.groups; g++) {
    uint8_t* numbers = to.numbers + g * 512;
    for (int h = 0; h < 64; h += 32) {
      const uint8_t *low = from + g * f.low + h, *high = from + w.high + g * f.high + h;
      I32 u[8];
      if constexpr (f.low == 512) {
        UNROLL for (int j = 0; j < 8; j++) u[j] = load(low + 64 * j);
      } else {
        UNROLL for (int j = 0; j < 4; j++) {
          const I32 b = load(low + 64 * j);
          u[j] = _mm256_and_si256(b, nibble);
          u[j + 4] = _mm256_and_si256(_mm256_srli_epi16(b, 4), nibble);
        }
      }
      if constexpr (f.high == 64) {
        const I32 bits = load(high);
        UNROLL for (int j = 0; j < 8; j++) {
          const I32 shifted = j < 4 ? _mm256_slli_epi16(bits, j < 4 ? 4 - j : 0) : _mm256_srli_epi16(bits, j < 4 ? 0 : j - 4);
          u[j] = _mm256_or_si256(u[j], _mm256_and_si256(shifted, fifth));
        }
      }
      if constexpr (f.high == 128) {
        UNROLL for (int j = 0; j < 8; j++) {
          const I32 bits = load(high + j / 4 * 64);
          const int left = 4 - 2 * (j % 4);
          const I32 shifted = left >= 0 ? _mm256_slli_epi16(bits, left >= 0 ? left : 0) : _mm256_srli_epi16(bits, left < 0 ? -left : 0);
          u[j] = _mm256_or_si256(u[j], _mm256_and_si256(shifted, pair));
        }
      }
      UNROLL for (int j = 0; j < 8; j++) _mm256_storeu_si256(reinterpret_cast<I32*>(numbers + 64 * j + h), u[j]);
    }
    const uint8_t *scales = from + w.scales + (g >> w.shared_bits) * f.scales, *super = from + w.supers + g / 8 * f.supers;
    for (int n = 0; n < kPanel; n += kHalf) {
      if constexpr (f.shared != 0) {
        const auto* shared = reinterpret_cast<const float*>(scales) + n;
        _mm256_storeu_ps(to.scale + g * 16 + n, _mm256_loadu_ps(shared));
        if constexpr (f.mode == Mode::shifted) _mm256_storeu_ps(to.offset + g * 16 + n, _mm256_loadu_ps(shared + kPanel));
      } else if constexpr (f.supers == 0) {
        _mm256_storeu_ps(to.scale + g * 16 + n, halves(scales + 2 * n));
        if constexpr (f.mode == Mode::minimum) _mm256_storeu_ps(to.offset + g * 16 + n, halves(scales + 32 + 2 * n));
      } else {
        const F32 d = halves(super + 2 * n);
        if constexpr (f.mode == Mode::minimum) {
          const F32 minimum = _mm256_mul_ps(halves(super + 32 + 2 * n), bytes(scales + 16 + n, false));
          _mm256_storeu_ps(to.scale + g * 16 + n, _mm256_mul_ps(d, bytes(scales + n, false)));
          _mm256_storeu_ps(to.offset + g * 16 + n, _mm256_sub_ps(_mm256_setzero_ps(), minimum));
        } else {
          _mm256_storeu_ps(to.scale + g * 32 + n, _mm256_mul_ps(d, bytes(scales + n, true)));
          _mm256_storeu_ps(to.scale + g * 32 + 16 + n, _mm256_mul_ps(d, bytes(scales + 16 + n, true)));
        }
      }
    }
  }
}

// sum[r] = sum over words [First, Last) of u * q[r], or of (u - 128) * q[r] where Words is 1.
template <int Words, int R, int Row, int First, int Last>
INLINE void dot(const uint8_t* numbers, const int8_t* q, I32 (&sum)[R]) {
  const I32 ones = _mm256_set1_epi16(1);
  UNROLL for (int r = 0; r < R; r++) sum[r] = _mm256_setzero_si256();
  UNROLL for (int start = First; start < Last; start += Words) {
    I32 pairs[R];
    for (int j = start; j < start + Words; j++) {
      I32 u = load(numbers + 64 * j);
      if constexpr (Words == 1) {
        const I32 signed_u = _mm256_xor_si256(u, _mm256_set1_epi8(-128));
        u = _mm256_abs_epi8(signed_u);
        UNROLL for (int r = 0; r < R; r++)
          pairs[r] = _mm256_maddubs_epi16(u, _mm256_sign_epi8(broadcast(q + r * Row + j * 4), signed_u));
      } else {
        UNROLL for (int r = 0; r < R; r++) {
          const I32 product = _mm256_maddubs_epi16(u, broadcast(q + r * Row + j * 4));
          pairs[r] = j == start ? product : _mm256_add_epi16(pairs[r], product);
        }
      }
    }
    UNROLL for (int r = 0; r < R; r++) sum[r] = _mm256_add_epi32(sum[r], _mm256_madd_epi16(pairs[r], ones));
  }
}

struct Ahead {  // what will be unpacked next is fetched meanwhile, `step` bytes a group
  const uint8_t* from;
  int64_t step;
};

template <Mode M, int Words, bool Exact, int R>
__attribute__((noinline)) void tile(const Unpacked& u, int half, const Activations& a, int64_t row, const Ahead& ahead, F32* total) {
  F32 acc[R];
  UNROLL for (int r = 0; r < R; r++) acc[r] = _mm256_setzero_ps();
  constexpr int bytes = Exact ? 2 * kGroup : kGroup;
  const int8_t* q = a.numbers + row * a.groups * bytes;
  const Facts* facts = a.facts + row * a.groups;
  for (int64_t g = 0; g < a.groups; g++, q += R * bytes, facts += R) {
    for (int64_t i = 0; i < ahead.step; i += 64) _mm_prefetch(reinterpret_cast<const char*>(ahead.from) + g * ahead.step + i, _MM_HINT_T1);
    const uint8_t* numbers = u.numbers + g * 512 + half * 4;
    const auto add = [&](I32(&sum)[R], const float* weight_scale) {
      const F32 s = _mm256_loadu_ps(weight_scale + half);
      UNROLL for (int r = 0; r < R; r++)
        acc[r] = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum[r]), _mm256_set1_ps(facts[r].scale)), s, acc[r]);
    };
    const auto product = [&](auto first, auto last, auto&& minus, I32(&sum)[R]) {
      dot<Words, R, bytes, decltype(first)::value, decltype(last)::value>(numbers, q, sum);
      if constexpr (Exact) {
        I32 lower[R];
        dot<Words, R, bytes, decltype(first)::value, decltype(last)::value>(numbers, q + kGroup, lower);
        UNROLL for (int r = 0; r < R; r++) sum[r] = _mm256_add_epi32(_mm256_slli_epi32(sum[r], 8), lower[r]);
      }
      if constexpr (M != Mode::minimum && Words != 1) {
        UNROLL for (int r = 0; r < R; r++)
          sum[r] = _mm256_add_epi32(sum[r], _mm256_slli_epi32(_mm256_set1_epi32(minus(r)), u.zero_bits));
      }
    };
    I32 sum[R];
    const std::integral_constant<int, 0> begin;
    const std::integral_constant<int, 4> middle;
    const std::integral_constant<int, 8> end;
    if constexpr (M == Mode::halves) {
      product(begin, middle, [&](int r) { return facts[r].minus_first; }, sum);
      add(sum, u.scale + g * 32);
      product(middle, end, [&](int r) { return facts[r].minus_sum - facts[r].minus_first; }, sum);
      add(sum, u.scale + g * 32 + 16);
    } else {
      product(begin, end, [&](int r) { return facts[r].minus_sum; }, sum);
      add(sum, u.scale + g * 16);
    }
    if constexpr (M == Mode::minimum || M == Mode::shifted) {
      const F32 offset = _mm256_loadu_ps(u.offset + g * 16 + half);
      UNROLL for (int r = 0; r < R; r++) acc[r] = _mm256_fmadd_ps(offset, _mm256_set1_ps(facts[r].scaled_sum), acc[r]);
    }
  }
  UNROLL for (int r = 0; r < R; r++) total[r] = acc[r];
}

template <Kind K>
INLINE F32 load_floats(const uint8_t* p) {
  if constexpr (K == Kind::f32) return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
  if constexpr (K == Kind::f16) return halves(p);
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}

template <Kind K, int R>
__attribute__((noinline)) void float_tile(const Weight& w, int64_t panel, int half, const float* values, F32* total) {
  constexpr int size = format(K).element;
  const uint8_t* from = w.panel(panel) + half * size;
  F32 acc[R];
  UNROLL for (int r = 0; r < R; r++) acc[r] = _mm256_setzero_ps();
  for (int64_t k = 0; k < w.in; k++, from += kPanel * size) {
    const F32 weight = load_floats<K>(from);
    UNROLL for (int r = 0; r < R; r++) acc[r] = _mm256_fmadd_ps(weight, _mm256_set1_ps(values[k * R + r]), acc[r]);
  }
  UNROLL for (int r = 0; r < R; r++) total[r] = acc[r];
}

template <int R>
__attribute__((noinline)) void float8_tile(const Weight& w, int64_t panel, int half, const float* values, F32* total) {
  const uint8_t *start = w.panel(panel), *from = start + half;
  const __m128i kept = _mm_set1_epi16(static_cast<int16_t>(0xbf80));
  F32 acc[R];
  UNROLL for (int r = 0; r < R; r++) acc[r] = _mm256_setzero_ps();
  for (int64_t k = 0; k < w.in; k += kGroup) {
    const float* scales = reinterpret_cast<const float*>(float8_scales(w, start, k)) + half;
    const F32 scale = _mm256_mul_ps(_mm256_loadu_ps(scales), _mm256_set1_ps(kFloat8));
    for (int i = 0; i < kGroup; i++, from += kPanel, values += R) {
      // See half_of_float8: with the sign in all upper bits a shift puts it in its place.
      const __m128i codes = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
      const F32 weight = _mm256_mul_ps(_mm256_cvtph_ps(_mm_and_si128(_mm_slli_epi16(codes, 7), kept)), scale);
      UNROLL for (int r = 0; r < R; r++) acc[r] = _mm256_fmadd_ps(weight, _mm256_set1_ps(values[r]), acc[r]);
    }
  }
  UNROLL for (int r = 0; r < R; r++) total[r] = acc[r];
}

void store(const F32* total, const Activations::Panel& rows, int half, const Output& output) {
  for (int r = 0; r < rows.rows; r++) {
    const int64_t at = (rows.first + r - output.row) * output.stride + half;
    if (output.valid >= half + kHalf) {
      F32 value = total[r];
      if (output.residual) value = _mm256_add_ps(_mm256_loadu_ps(output.residual + at), value);
      _mm256_storeu_ps(output.y + at, value);
      continue;
    }
    alignas(32) float part[kHalf];
    _mm256_store_ps(part, total[r]);
    for (int n = 0; n < output.valid - half; n++) output.y[at + n] = output.residual ? output.residual[at + n] + part[n] : part[n];
  }
}

template <Mode M, int Words, bool Exact, int... R>
auto tile_of(int rows, std::integer_sequence<int, R...>) {
  static constexpr decltype(&tile<M, Words, Exact, 1>) table[] = {tile<M, Words, Exact, R + 1>...};
  return table[rows - 1];
}

template <Kind K, int... R>
auto float_tile_of(int rows, std::integer_sequence<int, R...>) {
  if constexpr (format(K).element == 1) {
    static constexpr decltype(&float8_tile<1>) table[] = {float8_tile<R + 1>...};
    return table[rows - 1];
  } else {
    static constexpr decltype(&float_tile<K, 1>) table[] = {float_tile<K, R + 1>...};
    return table[rows - 1];
  }
}

template <Kind K>
void multiply_kind(const Weight& w, int64_t panel, int64_t stop, const Activations& a, int64_t first, int64_t last, void* scratch,
                   const Output& output) {
  using Sizes = std::make_integer_sequence<int, kRows>;
  constexpr Format f = format(K);
  F32 total[kRows];
  Unpacked unpacked{};
  Ahead ahead{w.panel(panel + 1), 0};
  if constexpr (!is_float(K)) {
    unpacked = unpacked_in(w, scratch);
    unpack<K>(w, panel, unpacked);
    ahead.step = panel + 1 < stop ? static_cast<int64_t>(w.panel_bytes) / w.groups : 0;
  }
  for (int64_t p = first; p < last; p++) {
    const Activations::Panel rows = a.panel(p);
    for (int half = 0; half < output.valid; half += kHalf, ahead.step = 0) {
      if constexpr (is_float(K)) {
        float_tile_of<K>(rows.rows, Sizes())(w, panel, half, a.values + rows.first * a.in, total);
      } else {
        constexpr int words = words_at_once(f);
        const auto fn = a.exact ? tile_of<f.mode, words, true>(rows.rows, Sizes()) : tile_of<f.mode, words, false>(rows.rows, Sizes());
        fn(unpacked, half, a, rows.first, ahead, total);
      }
      store(total, rows, half, output);
    }
  }
}

template <int... K>
auto multiply_of(Kind kind, std::integer_sequence<int, K...>) {
  static constexpr decltype(Kernels::multiply) table[] = {multiply_kind<read_as(static_cast<Kind>(K))>...};
  return table[static_cast<int>(kind)];
}

void multiply_panel(const Weight& w, int64_t panel, int64_t stop, const Activations& a, int64_t first, int64_t last, void* scratch,
                    const Output& output) {
  multiply_of(w.kind, std::make_integer_sequence<int, kKinds>())(w, panel, stop, a, first, last, scratch, output);
}

}  // namespace

const Kernels kAvx2Kernels = {kRows, prepare_avx2, multiply_panel, gate_avx2};

}  // namespace slipstream

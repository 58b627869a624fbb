// Products with AVX-512 VNNI: tiles of 16 outputs by up to 12 rows, so that 12 sums of a group and 12 totals stay in registers.
// GCC 12 warns about its own intrinsics' undefined registers.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include <cstring>
#include <utility>

#include "gemm_avx512.h"

namespace slipstream {
namespace {

constexpr int kRows = 12;
// Up to this many rows the two bytes of an exact product have sums of their own.
constexpr int kFewRows = 4;

#define UNROLL _Pragma("GCC unroll 16")
#define INLINE inline __attribute__((always_inline))

using I32 = __m512i;
using F32 = __m512;

INLINE I32 broadcast(const int8_t* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}

// A group at a time of a packed panel, unpacked in registers.
template <Kind K>
struct Packed {
  static constexpr Format f = format(K);
  static constexpr Mode mode = f.mode;
  const uint8_t *low, *high, *scales, *supers;
  struct Sections {  // at what is fetched while group 0 is read
    const uint8_t *low, *high, *scales;
  };
  Sections ahead, after;  // in the panel that is fetched from first, and in the one after it, from group `turn` on
  int64_t turn;
  int shared_bits;
  I32 u[8];
  F32 scale, second;  // second: the offset (Mode::minimum and shifted), or the scale of inputs 16-31 (Mode::halves)

  Packed(const Weight& w, int64_t panel, int64_t stop)
      : low(w.panel(panel)), high(low + w.high), scales(low + w.scales), supers(low + w.supers), turn(w.groups - w.ahead_groups),
        shared_bits(w.shared_bits) {
    const auto sections = [&](int64_t from, int64_t group) {
      // Where there is nothing to fetch it is this panel, which is there already.
      const uint8_t* at = from < stop ? w.panel(from) : low;
      return Sections{at + group * f.low, at + w.high + group * f.high, at + w.scales + (group >> shared_bits) * f.scales};
    };
    ahead = sections(panel + w.ahead_panels, w.ahead_groups);
    after = sections(panel + w.ahead_panels + 1, -turn);
  }

  INLINE void read(int64_t g) {
    const I32 nibble = _mm512_set1_epi8(15);
    const uint8_t* at = low + g * f.low;
    if constexpr (f.low == 512) {
      UNROLL for (int j = 0; j < 8; j++) u[j] = _mm512_loadu_si512(at + 64 * j);
    } else {
      UNROLL for (int j = 0; j < 4; j++) {
        const I32 b = _mm512_loadu_si512(at + 64 * j);
        u[j] = _mm512_and_si512(b, nibble);
        u[j + 4] = _mm512_and_si512(_mm512_srli_epi16(b, 4), nibble);
      }
    }
    if constexpr (f.high == 64) {
      const I32 bits = _mm512_loadu_si512(high + g * 64), fifth = _mm512_set1_epi8(16);
      UNROLL for (int j = 0; j < 8; j++) {
        const I32 shifted = j < 4 ? _mm512_slli_epi16(bits, j < 4 ? 4 - j : 0) : _mm512_srli_epi16(bits, j < 4 ? 0 : j - 4);
        u[j] = _mm512_ternarylogic_epi32(u[j], shifted, fifth, 0xf8);  // u | shifted & fifth
      }
    }
    if constexpr (f.high == 128) {
      const I32 pair = _mm512_set1_epi8(0x30);
      UNROLL for (int j = 0; j < 8; j++) {
        const I32 bits = _mm512_loadu_si512(high + g * 128 + j / 4 * 64);
        const int left = 4 - 2 * (j % 4);
        const I32 shifted = left >= 0 ? _mm512_slli_epi16(bits, left >= 0 ? left : 0) : _mm512_srli_epi16(bits, left < 0 ? -left : 0);
        u[j] = _mm512_ternarylogic_epi32(u[j], shifted, pair, 0xf8);
      }
    }
    read_scales(g);
  }

  INLINE void read_scales(int64_t g) {
    const uint8_t* at = scales + (f.shared ? g >> shared_bits : g) * f.scales;
    if constexpr (f.shared != 0) {
      scale = _mm512_loadu_ps(at);
      if constexpr (mode == Mode::shifted) second = _mm512_loadu_ps(at + 64);
    } else if constexpr (f.supers == 0) {
      scale = halves(at);
      if constexpr (mode == Mode::minimum) second = halves(at + 32);
    } else {
      const uint8_t* super = supers + g / 8 * f.supers;
      const F32 d = halves(super);
      const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
      const __m128i other = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 16));
      if constexpr (mode == Mode::minimum) {
        scale = _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(first)));
        const F32 minimum = _mm512_mul_ps(halves(super + 32), _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(other)));
        second = _mm512_sub_ps(_mm512_setzero_ps(), minimum);
      } else {
        scale = _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(first)));
        second = _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(other)));
      }
    }
  }

  static INLINE F32 halves(const uint8_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }

  // Inlined by force: GCC takes a function that only prefetches for one that does nothing, and drops its calls.
  static INLINE void fetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1); }

  // Into the second-level cache, which can wait for more lines at a time than the first: one thread reads 20 GB/s in this
  // way, and 12 the other way.
  INLINE void prefetch(int64_t g) const {
    const Sections& from = g < turn ? ahead : after;
    UNROLL for (int i = 0; i < f.low; i += 64) fetch(from.low + g * f.low + i);
    UNROLL for (int i = 0; i < f.high; i += 64) fetch(from.high + g * f.high + i);
    UNROLL for (int i = 0; i < f.scales; i += 64) fetch(from.scales + (f.shared ? g >> shared_bits : g) * f.scales + i);
  }
  INLINE void start(int64_t g) { read(g), prefetch(g); }  // in this order: what is needed now goes first
  INLINE I32 word(int j) const { return u[j]; }
  INLINE I32 times_zero(I32 v) const { return _mm512_slli_epi32(v, f.zero_bits); }
  INLINE F32 first_scale() const { return scale; }
  INLINE F32 second_scale() const { return second; }
};

// sum[r] = correction(r) + sum over words [First, Last) of u * q[r].
template <bool Exact, int R, int First, int Last, class Source, class Correction>
INLINE void dot(const Source& s, const int8_t* q, Correction&& correction, I32 (&sum)[R]) {
  constexpr int row = Exact ? 2 * kGroup : kGroup;
  const auto high = [&](int r, int j) { return broadcast(q + r * row + j * 4); };
  const auto low = [&](int r, int j) { return broadcast(q + r * row + kGroup + j * 4); };
  if constexpr (Exact && R <= kFewRows) {  // two independent sums: few rows leave the multiplier waiting
    I32 lower[R];
    UNROLL for (int r = 0; r < R; r++) sum[r] = _mm512_setzero_si512(), lower[r] = correction(r);
    UNROLL for (int j = First; j < Last; j++) {
      const I32 u = s.word(j);
      UNROLL for (int r = 0; r < R; r++) {
        sum[r] = _mm512_dpbusd_epi32(sum[r], u, high(r, j));
        lower[r] = _mm512_dpbusd_epi32(lower[r], u, low(r, j));
      }
    }
    UNROLL for (int r = 0; r < R; r++) sum[r] = _mm512_add_epi32(_mm512_slli_epi32(sum[r], 8), lower[r]);
    return;
  }
  UNROLL for (int r = 0; r < R; r++) sum[r] = Exact ? _mm512_setzero_si512() : correction(r);
  UNROLL for (int j = First; j < Last; j++) {
    const I32 u = s.word(j);
    UNROLL for (int r = 0; r < R; r++) sum[r] = _mm512_dpbusd_epi32(sum[r], u, high(r, j));
  }
  if constexpr (Exact) {
    UNROLL for (int r = 0; r < R; r++) sum[r] = _mm512_slli_epi32(sum[r], 8);
    if constexpr (Source::mode != Mode::minimum)
      UNROLL for (int r = 0; r < R; r++) sum[r] = _mm512_add_epi32(sum[r], correction(r));
    UNROLL for (int j = First; j < Last; j++) {
      const I32 u = s.word(j);
      UNROLL for (int r = 0; r < R; r++) sum[r] = _mm512_dpbusd_epi32(sum[r], u, low(r, j));
    }
  }
}

struct Rows {  // one row panel of the activations
  const int8_t* numbers;
  const Facts* facts;
  const float* values;

  Rows(const Activations& a, int64_t row)
      : numbers(a.numbers + row * a.groups * a.number_bytes()), facts(a.facts + row * a.groups), values(a.values + row * a.in) {}
};

template <bool Exact, int R, class Source>
INLINE void tile(Source s, const Rows& a, int64_t groups, F32* total) {
  F32 acc[R];
  UNROLL for (int r = 0; r < R; r++) acc[r] = _mm512_setzero_ps();
  const int8_t* q = a.numbers;
  const Facts* facts = a.facts;
  for (int64_t g = 0; g < groups; g++, q += R * (Exact ? 2 * kGroup : kGroup), facts += R) {
    s.start(g);
    const auto add = [&](I32(&sum)[R], F32 weight_scale) {
      UNROLL for (int r = 0; r < R; r++)
        acc[r] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum[r]), _mm512_set1_ps(facts[r].scale)), weight_scale, acc[r]);
    };
    const auto add_offset = [&] {
      const F32 offset = s.second_scale();
      UNROLL for (int r = 0; r < R; r++) acc[r] = _mm512_fmadd_ps(offset, _mm512_set1_ps(facts[r].scaled_sum), acc[r]);
    };
    const auto whole = [&](int r) { return s.times_zero(_mm512_set1_epi32(facts[r].minus_sum)); };
    const auto first = [&](int r) { return s.times_zero(_mm512_set1_epi32(facts[r].minus_first)); };
    const auto second = [&](int r) { return s.times_zero(_mm512_set1_epi32(facts[r].minus_sum - facts[r].minus_first)); };
    I32 sum[R];
    if constexpr (Source::mode == Mode::minimum) {
      dot<Exact, R, 0, 8>(s, q, [](int) { return _mm512_setzero_si512(); }, sum);
      add(sum, s.first_scale());
      add_offset();
    } else if constexpr (Source::mode == Mode::centred || Source::mode == Mode::shifted) {
      dot<Exact, R, 0, 8>(s, q, whole, sum);
      add(sum, s.first_scale());
      if constexpr (Source::mode == Mode::shifted) add_offset();
    } else {
      dot<Exact, R, 0, 4>(s, q, first, sum);
      add(sum, s.first_scale());
      dot<Exact, R, 4, 8>(s, q, second, sum);
      add(sum, s.second_scale());
    }
  }
  UNROLL for (int r = 0; r < R; r++) total[r] = acc[r];
}

template <Kind K, bool Exact, int R>
__attribute__((noinline)) void packed_tile(const Weight& w, int64_t panel, int64_t stop, const Rows& a, F32* total) {
  tile<Exact, R>(Packed<K>(w, panel, stop), a, w.groups, total);
}

template <Kind K>
INLINE F32 load_floats(const uint8_t* p) {
  if constexpr (K == Kind::f32) return _mm512_loadu_ps(p);
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  if constexpr (K == Kind::f16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

template <Kind K, int R>
__attribute__((noinline)) void float_tile(const Weight& w, int64_t panel, int64_t stop, const Rows& a, F32* total) {
  constexpr int step = kPanel * format(K).element;
  const uint8_t *from = w.panel(panel), *last = w.panel(stop) - 64;
  F32 acc[R];
  UNROLL for (int r = 0; r < R; r++) acc[r] = _mm512_setzero_ps();
  for (int64_t k = 0; k < w.in; k++, from += step) {
    const uint8_t* ahead = from + kFetchAhead;
    _mm_prefetch(reinterpret_cast<const char*>(ahead < last ? ahead : last), _MM_HINT_T1);
    const F32 weight = load_floats<K>(from);
    UNROLL for (int r = 0; r < R; r++) acc[r] = _mm512_fmadd_ps(weight, _mm512_set1_ps(a.values[k * R + r]), acc[r]);
  }
  UNROLL for (int r = 0; r < R; r++) total[r] = acc[r];
}

template <int R>
__attribute__((noinline)) void float8_tile(const Weight& w, int64_t panel, int64_t stop, const Rows& a, F32* total) {
  const uint8_t *start = w.panel(panel), *from = start, *last = w.panel(stop) - 64;
  const __m256i kept = _mm256_set1_epi16(static_cast<int16_t>(0xbf80));
  const float* values = a.values;
  F32 acc[R];
  UNROLL for (int r = 0; r < R; r++) acc[r] = _mm512_setzero_ps();
  for (int64_t k = 0; k < w.in; k += kGroup) {
    const F32 scale = _mm512_mul_ps(_mm512_loadu_ps(float8_scales(w, start, k)), _mm512_set1_ps(kFloat8));
    for (int i = 0; i < kGroup; i++, from += kPanel, values += R) {
      if (i % 4 == 0) {
        const uint8_t* ahead = from + kFetchAhead;
        _mm_prefetch(reinterpret_cast<const char*>(ahead < last ? ahead : last), _MM_HINT_T1);
      }
      // See half_of_float8: with the sign in all upper bits a shift puts it in its place.
      const __m256i codes = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
      const F32 weight = _mm512_mul_ps(_mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16(codes, 7), kept)), scale);
      UNROLL for (int r = 0; r < R; r++) acc[r] = _mm512_fmadd_ps(weight, _mm512_set1_ps(values[r]), acc[r]);
    }
  }
  UNROLL for (int r = 0; r < R; r++) total[r] = acc[r];
}

// ---- tables: [exact][rows - 1]

using PackedTile = void (*)(const Weight&, int64_t, int64_t, const Rows&, F32*);

template <Kind K, bool Exact, int... R>
PackedTile packed_of(int rows, std::integer_sequence<int, R...>) {
  static constexpr PackedTile table[] = {packed_tile<K, Exact, R + 1>...};
  return table[rows - 1];
}
template <Kind K>
PackedTile packed(bool exact, int rows) {
  using Sizes = std::make_integer_sequence<int, kRows>;
  return exact ? packed_of<K, true>(rows, Sizes()) : packed_of<K, false>(rows, Sizes());
}

template <Kind K, int... R>
PackedTile floats_of(int rows, std::integer_sequence<int, R...>) {
  if constexpr (format(K).element == 1) {
    static constexpr PackedTile table[] = {float8_tile<R + 1>...};
    return table[rows - 1];
  } else {
    static constexpr PackedTile table[] = {float_tile<K, R + 1>...};
    return table[rows - 1];
  }
}

INLINE void store(const F32* total, const Activations::Panel& rows, const Output& output) {
  const __mmask16 mask = static_cast<__mmask16>((1u << output.valid) - 1);
  for (int r = 0; r < rows.rows; r++) {
    const int64_t at = (rows.first + r - output.row) * output.stride;
    F32 value = total[r];
    if (output.residual) value = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, output.residual + at), value);
    _mm512_mask_storeu_ps(output.y + at, mask, value);
  }
}

template <Kind K>
PackedTile tile_for(bool exact, int rows) {
  if constexpr (is_float(K)) return floats_of<K>(rows, std::make_integer_sequence<int, kRows>());
  else return packed<K>(exact, rows);
}

// A panel is unpacked in registers each time that it is read: beside 12 rows that costs less than going through memory.
template <Kind K>
void multiply_kind(const Weight& w, int64_t panel, int64_t stop, const Activations& a, int64_t first, int64_t last, void*,
                   const Output& output) {
  F32 total[kRows];
  for (int64_t p = first; p < last; p++) {
    const Activations::Panel rows = a.panel(p);
    tile_for<K>(a.exact, rows.rows)(w, panel, stop, Rows(a, rows.first), total);
    store(total, rows, output);
  }
}

using Multiply = decltype(Kernels::multiply);

template <int... K>
Multiply multiply_of(Kind kind, std::integer_sequence<int, K...>) {
  static constexpr Multiply table[] = {multiply_kind<read_as(static_cast<Kind>(K))>...};
  return table[static_cast<int>(kind)];
}

void multiply_panel(const Weight& w, int64_t panel, int64_t stop, const Activations& a, int64_t first, int64_t last, void* scratch,
                    const Output& output) {
  multiply_of(w.kind, std::make_integer_sequence<int, kKinds>())(w, panel, stop, a, first, last, scratch, output);
}

}  // namespace

const Kernels kAvx512Kernels = {kRows, prepare_avx512, multiply_panel, gate_avx512};

}  // namespace slipstream

// Products in plain C++, for every machine; the other files do the same with wider instructions.
#include <cmath>
#include <cstring>
#include <limits>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "gemm_kernels.h"

namespace slipstream {
namespace {

constexpr int kRows = 4;

float norm_factor(const Input& input, const float* x) {
  float lanes[16] = {};  // a fixed number of partial sums: more precise than one, and it vectorizes
  for (int64_t k = 0; k < input.in; k++) lanes[k % 16] += x[k] * x[k];
  float sum = 0;
  for (float lane : lanes) sum += lane;
  return 1.0f / std::sqrt(sum / static_cast<float>(input.in) + input.eps);
}

void quantize(const float* x, const Activations& to, const Activations::Panel& panel, int64_t r, int64_t g) {
  float top = 0;
  bool finite = true;
  for (int k = 0; k < kGroup; k++) {
    top = std::fmax(top, std::fabs(x[k]));
    finite &= std::isfinite(x[k]);
  }
  const int limit = to.exact ? kExactTop : kFastTop;
  const bool zero = !finite || top < kSmallest;
  const float inverse = zero ? 0.0f : static_cast<float>(limit) / top;
  // Numbers that are not finite must not look like numbers: the scale carries them on.
  const float scale = !finite ? std::numeric_limits<float>::quiet_NaN() : zero ? 0.0f : top / static_cast<float>(limit);
  int32_t sums[2] = {};
  const int64_t index = panel.first * to.groups + g * panel.rows + r;
  int8_t* numbers = to.numbers + index * to.number_bytes();
  for (int k = 0; k < kGroup; k++) {
    int q = zero ? 0 : static_cast<int>(std::nearbyint(x[k] * inverse));
    if (to.exact) {
      const int high = (q + 128) >> 8;
      int low = q - high * 256;
      if (low < -127) low = -127;
      numbers[k] = static_cast<int8_t>(high), numbers[kGroup + k] = static_cast<int8_t>(low);
      q = high * 256 + low;
    } else {
      numbers[k] = static_cast<int8_t>(q);
    }
    sums[k / 16] += q;
  }
  const int32_t sum = sums[0] + sums[1];
  to.facts[index] = {scale, scale * static_cast<float>(sum), -sum, -sums[0]};
}

void prepare_row(const Input& input, const Activations& to, int64_t row) {
  const float* x = input.x + row * input.in;
  const Activations::Panel panel = to.panel_of(row);
  const int64_t r = row - panel.first;
  const float factor = input.norm ? norm_factor(input, x) : 1.0f;
  const auto value = [&](int64_t k) { return input.norm ? x[k] * factor * (input.norm[k] + input.norm_offset) : x[k]; };
  if (to.plain)
    for (int64_t k = 0; k < input.in; k++) to.values[panel.first * to.in + k * panel.rows + r] = value(k);
  if (!to.quantized) return;
  float group[kGroup];
  for (int64_t g = 0; g < to.groups; g++) {
    for (int k = 0; k < kGroup; k++) group[k] = value(g * kGroup + k);
    quantize(group, to, panel, r, g);
  }
}

void prepare(const Input& input, const Activations& to, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; row++) prepare_row(input, to, row);
}

// Vectors of 16 bytes as GCC and Clang have them on every machine.
using Half = int16_t __attribute__((vector_size(16)));
using Word = int32_t __attribute__((vector_size(16)));

// a[2i] * b[2i] + a[2i + 1] * b[2i + 1], where each product fits 16 bits.
inline Word pairs(Half a, Half b) {
#if defined(__SSE2__)
  return reinterpret_cast<Word>(_mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  const Word product = reinterpret_cast<Word>(a * b);
  return (product << 16 >> 16) + (product >> 16);
#endif
}

// sum over words [first, last) of u * q, for each of 16 outputs. A product of a byte with and one without sign fits 16 bits.
void dot(const uint8_t* u, const int8_t* q, int first, int last, int32_t* sum) {
  Word sums[4] = {};
  for (int j = first; j < last; j++) {
    const int8_t* four = q + j * 4;
    const int16_t a = four[0], b = four[1], c = four[2], d = four[3];
    const Half even = {a, c, a, c, a, c, a, c}, odd = {b, d, b, d, b, d, b, d};
    for (int i = 0; i < 4; i++) {  // four outputs
      uint16_t __attribute__((vector_size(16))) bytes;
      std::memcpy(&bytes, u + j * 64 + i * 16, 16);
      sums[i] += pairs(reinterpret_cast<Half>(bytes & 0xff), even) + pairs(reinterpret_cast<Half>(bytes >> 8), odd);
    }
  }
  for (int n = 0; n < kPanel; n++) sum[n] += sums[n / 4][n % 4];
}

void multiply_row(const Unpacked& u, const Activations& a, const Activations::Panel& panel, int r, float* sum) {
  const int64_t halves = u.mode == Mode::halves ? 2 : 1;
  for (int64_t g = 0; g < a.groups; g++) {
    const int64_t at = panel.first * a.groups + g * panel.rows + r;
    const Facts& facts = a.facts[at];
    const int8_t* q = a.numbers + at * a.number_bytes();
    for (int64_t half = 0; half < halves; half++) {
      const int first = static_cast<int>(half) * 4, last = halves == 2 ? first + 4 : 8;
      int32_t product[kPanel] = {};
      dot(u.numbers + g * 512, q, first, last, product);
      if (a.exact) {
        for (int32_t& p : product) p *= 256;
        dot(u.numbers + g * 512, q + kGroup, first, last, product);
      }
      int32_t correction = 0;
      if (u.mode == Mode::centred || u.mode == Mode::shifted) correction = facts.minus_sum * (1 << u.zero_bits);
      if (u.mode == Mode::halves)
        correction = (half ? facts.minus_sum - facts.minus_first : facts.minus_first) * (1 << u.zero_bits);
      const float* scale = u.scale + (g * halves + half) * kPanel;
      for (int n = 0; n < kPanel; n++) sum[n] += static_cast<float>(product[n] + correction) * facts.scale * scale[n];
    }
    if (u.mode == Mode::minimum || u.mode == Mode::shifted)
      for (int n = 0; n < kPanel; n++) sum[n] += u.offset[g * kPanel + n] * facts.scaled_sum;
  }
}

float element(Kind kind, const uint8_t* p) {
  uint16_t half;
  uint32_t bits;
  if (kind == Kind::f32) {
    std::memcpy(&bits, p, 4);
  } else {
    std::memcpy(&half, p, 2);
    if (kind == Kind::f16) return half_to_float(half);
    bits = static_cast<uint32_t>(half) << 16;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

void multiply_float8_row(const Weight& w, const uint8_t* from, const float* values, int64_t R, float* sum) {
  float scale[kPanel];
  for (int64_t k = 0; k < w.in; k++) {
    if (k % kGroup == 0) {
      std::memcpy(scale, float8_scales(w, from, k), sizeof(scale));
      for (float& one : scale) one *= kFloat8;
    }
    for (int n = 0; n < kPanel; n++) sum[n] += half_to_float(half_of_float8(from[k * kPanel + n])) * scale[n] * values[k * R];
  }
}

void multiply_float_row(const Weight& w, const uint8_t* from, const float* values, int64_t R, float* sum) {
  const int size = format(w.kind).element;
  if (size == 1) return multiply_float8_row(w, from, values, R, sum);
  for (int64_t k = 0; k < w.in; k++)
    for (int n = 0; n < kPanel; n++) sum[n] += element(w.kind, from + (k * kPanel + n) * size) * values[k * R];
}

void multiply_panel(const Weight& w, int64_t panel, int64_t, const Activations& a, int64_t first, int64_t last, void* scratch,
                    const Output& output) {
  const Unpacked unpacked = unpacked_in(w, scratch);
  if (!is_float(w.kind)) unpack_panel(w, panel, unpacked);
  for (int64_t p = first; p < last; p++) {
    const Activations::Panel rows = a.panel(p);
    for (int r = 0; r < rows.rows; r++) {
      float sum[kPanel] = {};
      if (is_float(w.kind))
        multiply_float_row(w, w.panel(panel), a.values + rows.first * a.in + r, rows.rows, sum);
      else
        multiply_row(unpacked, a, rows, r, sum);
      const int64_t at = (rows.first + r - output.row) * output.stride;
      for (int n = 0; n < output.valid; n++)
        output.y[at + n] = output.residual ? output.residual[at + n] + sum[n] : sum[n];
    }
  }
}

void gate(Gate kind, float* g, const float* u, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const float x = g[i];
    const float z = kind == Gate::silu ? x : 1.5957691216f * (x + 0.044715f * x * x * x);
    g[i] = x / (1.0f + std::exp(-z)) * u[i];
  }
}

}  // namespace

const Kernels kPortableKernels = {kRows, prepare, multiply_panel, gate};

}  // namespace slipstream

#include "packed.h"

#include <cstring>

namespace slipstream {
namespace {

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

float half_at(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, 2);
  return half_to_float(bits);
}

// Number k (0-31) of output n in a group.
int number(const Format& f, const uint8_t* low, const uint8_t* high, int n, int k) {
  const int byte = n * 4 + k % 4;
  if (f.low == 512) return low[k / 4 * 64 + byte];
  int value = low[k % 16 / 4 * 64 + byte] >> (k / 16 * 4) & 15;
  if (f.high == 64) value |= (high[byte] >> (k / 4) & 1) << 4;
  if (f.high == 128) value |= (high[k / 16 * 64 + byte] >> (k % 16 / 4 * 2) & 3) << 4;
  return value;
}

struct Scales {
  float first, second;  // Mode::minimum and shifted: scale and offset; halves: both scales; centred: the scale twice
};

Scales scales(const Weight& w, const uint8_t* panel, int64_t g, int n) {
  const Format& f = format(w.kind);
  const uint8_t* at = panel + w.scales + (g >> w.shared_bits) * f.scales;
  if (f.shared) {
    float scale;
    std::memcpy(&scale, at + 4 * n, 4);
    float offset = scale;
    if (f.mode == Mode::shifted) std::memcpy(&offset, at + 4 * kPanel + 4 * n, 4);
    return {scale, offset};
  }
  if (!f.supers) {
    const float first = half_at(at + 2 * n);
    return {first, f.mode == Mode::minimum ? half_at(at + 32 + 2 * n) : first};
  }
  const uint8_t* super = panel + w.supers + g / 8 * f.supers + 2 * n;
  const float d = half_at(super);
  if (f.mode == Mode::minimum) return {d * at[n], -(half_at(super + 32) * at[16 + n])};
  return {d * static_cast<int8_t>(at[n]), d * static_cast<int8_t>(at[16 + n])};
}

// Input k of output n of a panel.
float float_at(const Weight& w, const uint8_t* panel, int64_t k, int n) {
  const Format& f = format(w.kind);
  const uint8_t* p = panel + (k * kPanel + n) * f.element;
  if (w.kind == Kind::f16) return half_at(p);
  uint32_t bits = 0;
  if (f.element == 1) {
    std::memcpy(&bits, float8_scales(w, panel, k) + 4 * n, 4);
    return half_to_float(half_of_float8(*p)) * (kFloat8 * from_bits(bits));
  }
  if (w.kind == Kind::f32) {
    std::memcpy(&bits, p, 4);
    return from_bits(bits);
  }
  uint16_t upper;
  std::memcpy(&upper, p, 2);
  return from_bits(static_cast<uint32_t>(upper) << 16);
}

}  // namespace

float half_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
  if (magnitude >= 0x7c00) return from_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // A float32 holds even the denormal halves exactly: half a step of the smallest is taken off again.
  if (magnitude < 0x400) {
    const float value = static_cast<float>(magnitude) * from_bits(0x33800000);  // 2^-24
    return sign ? -value : value;
  }
  return from_bits(sign | ((magnitude << 13) + 0x38000000));
}

void unpack_panel(const Weight& w, int64_t panel, const Unpacked& to) {
  const Format& f = format(w.kind);
  const uint8_t* from = w.panel(panel);
  const int per_group = to.mode == Mode::halves ? 32 : 16;
  for (int64_t g = 0; g < w.groups; g++) {
    const uint8_t *low = from + g * f.low, *high = from + w.high + g * f.high;
    uint8_t* numbers = to.numbers + g * 512;
    // Plain loops over whole words, which compilers turn into vector instructions.
    if (f.low == 512) std::memcpy(numbers, low, 512);
    for (int i = 0; i < (f.low == 256 ? 256 : 0); i++) numbers[i] = low[i] & 15;
    for (int i = 0; i < (f.low == 256 ? 256 : 0); i++) numbers[256 + i] = low[i] >> 4;
    for (int j = 0; j < (f.high == 64 ? 8 : 0); j++)
      for (int i = 0; i < 64; i++) numbers[64 * j + i] |= static_cast<uint8_t>((high[i] >> j & 1) << 4);
    for (int j = 0; j < (f.high == 128 ? 8 : 0); j++)
      for (int i = 0; i < 64; i++) numbers[64 * j + i] |= static_cast<uint8_t>((high[j / 4 * 64 + i] >> (j % 4 * 2) & 3) << 4);
    for (int n = 0; n < kPanel; n++) {
      const Scales s = scales(w, from, g, n);
      to.scale[g * per_group + n] = s.first;
      if (to.mode == Mode::halves) to.scale[g * per_group + 16 + n] = s.second;
      if (to.mode == Mode::minimum || to.mode == Mode::shifted) to.offset[g * 16 + n] = s.second;
    }
  }
}

void decode_row(const Weight& w, int64_t row, float* to) {
  const Format& f = format(w.kind);
  const uint8_t* from = w.panel(row / kPanel);
  const int n = static_cast<int>(row % kPanel);
  if (f.element) {
    for (int64_t k = 0; k < w.in; k++) to[k] = float_at(w, from, k, n);
    return;
  }
  const int zero = f.zero_bits ? 1 << f.zero_bits : 0;
  for (int64_t g = 0; g < w.groups; g++, to += kGroup) {
    const Scales s = scales(w, from, g, n);
    const uint8_t *low = from + g * f.low, *high = from + w.high + g * f.high;
    for (int k = 0; k < kGroup; k++) {
      const float u = static_cast<float>(number(f, low, high, n, k) - zero);
      to[k] = f.mode == Mode::minimum || f.mode == Mode::shifted ? u * s.first + s.second : u * (k < 16 ? s.first : s.second);
    }
  }
}

}  // namespace slipstream

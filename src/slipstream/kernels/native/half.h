// The narrow numbers of a cache or a weight, and their conversion one at a time. Rounding is to nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

namespace slipstream {

struct Half {  // IEEE binary16
  uint16_t bits;
};

struct Brain {  // the upper half of a float: bfloat16
  uint16_t bits;
};

namespace convert {

static inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

static inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

static inline float widen(float x) { return x; }

static inline float widen(int8_t x) { return static_cast<float>(x); }

static inline float widen(Brain x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }

// Integers only: the result must not depend on whether denormals are flushed.
static inline float widen(Half x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  if (exponent == 31) return float_of(sign | 0x7f800000u | fraction << 13);
  if (exponent != 0) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
  if (fraction == 0) return float_of(sign);
  const uint32_t shift = static_cast<uint32_t>(__builtin_clz(fraction)) - 21;  // to make bit 10 the leading one
  return float_of(sign | (113 - shift) << 23 | (fraction << shift & 1023) << 13);
}

static inline void narrow(float x, float* out) { *out = x; }

// Beyond -127 .. 127 the nearest of those; NaN becomes 0.
static inline void narrow(float x, int8_t* out) {
  const float shift = 12582912.0f;  // 1.5 * 2^23: its last bit is worth 1
  *out = x >= 127.0f ? 127 : x <= -127.0f ? -127 : x == x ? static_cast<int8_t>((x + shift) - shift) : 0;
}

static inline void narrow(float x, Brain* out) {
  const uint32_t bits = bits_of(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = static_cast<uint16_t>(nan ? bits >> 16 | 64 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline void narrow(float x, Half* out) {
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  uint32_t half;
  if (size > 0x7f800000u) {
    half = 0x7e00;
  } else if (size >= 0x477ff000u) {  // rounds to 65536 or more
    half = 0x7c00;
  } else if (size >= 0x38800000u) {
    half = (size - 0x38000000u + 0xfff + (size >> 13 & 1)) >> 13;
  } else if (size < 0x33000000u) {  // less than half of the smallest denormal
    half = 0;
  } else {
    const uint32_t shift = 126 - (size >> 23), fraction = (size & 0x7fffff) | 0x800000;
    const uint32_t whole = fraction >> shift, rest = fraction & ((1u << shift) - 1), middle = 1u << (shift - 1);
    half = whole + (rest > middle || (rest == middle && (whole & 1)));
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

}  // namespace convert
}  // namespace slipstream

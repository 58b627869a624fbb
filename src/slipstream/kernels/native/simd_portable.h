// Vectors of four floats by the compiler's own extension: SSE2 on x86-64, NEON on aarch64.
#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"

namespace slipstream {
namespace {

struct Simd {
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  static constexpr int lanes = 4;
  static constexpr int tile_rows = 4, tile_columns = 2;  // a product's tile: rows times vectors, all in registers

  static F zero() { return F{}; }
  static F set1(float x) { return F{x, x, x, x}; }
  static F load(const float* p) {
    F x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  template <class T>
  static F load(const T* p) {
    return F{convert::widen(p[0]), convert::widen(p[1]), convert::widen(p[2]), convert::widen(p[3])};
  }
  static void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
  template <class T>
  static void store(T* p, F x) {
    for (int i = 0; i < lanes; ++i) convert::narrow(x[i], p + i);
  }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F max(F a, F b) { return a > b ? a : b; }
  static F min(F a, F b) { return a < b ? a : b; }
  static float sum(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }
  static float top(F x) {
    const float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
    return a > b ? a : b;
  }
  // To the nearest integer, for |x| < 2^22.
  static F round(F x) {
    const F shift = set1(12582912.0f);  // 1.5 * 2^23: its last bit is worth 1
    return (x + shift) - shift;
  }
  // x * 2^n for an integer n, where neither n nor the result leaves the range of normal floats.
  static F scale2(F x, F n) {
    const I bits = (__builtin_convertvector(n, I) + 127) << 23;
    F factor;
    std::memcpy(&factor, &bits, sizeof factor);
    return x * factor;
  }
  // Turns rows[i][j] into rows[j][i].
  static void transpose(F* rows) {
    F out[lanes];
    for (int i = 0; i < lanes; ++i) out[i] = F{rows[0][i], rows[1][i], rows[2][i], rows[3][i]};
    for (int i = 0; i < lanes; ++i) rows[i] = out[i];
  }
};

}  // namespace
}  // namespace slipstream

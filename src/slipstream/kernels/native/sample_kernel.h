// The drawing of one row, in plain loops over whole vectors: each file that includes this is compiled for another instruction set.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "sample.h"

namespace slipstream {
namespace {

constexpr int kLanes = 16;  // numbers side by side; their count is a part of every sum's order
constexpr float kBanned = -1e30f;

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// exp(x) for x <= 0, relative error under 2e-7; 0 below -87.
inline float exponential(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  const float n = std::nearbyint(clamped * 1.44269504f);
  float r = clamped - n * 0.693145752f;  // ln 2 in two parts
  r = r - n * 1.42860677e-6f;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const float power = bits_to_float(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
  return x < -87.0f ? 0.0f : p * power;
}

// The natural logarithm of a normal positive number, absolute error under 2e-7 of its size: of the mantissa in [2/3, 4/3) by the
// series of atanh, and the exponent's share.
inline float logarithm(float x) {
  const uint32_t bits = float_to_bits(x), shifted = bits - 0x3f2aaaab;
  const int32_t exponent = static_cast<int32_t>(shifted) >> 23;
  const float m = bits_to_float(bits - (static_cast<uint32_t>(exponent) << 23));
  const float s = (m - 1.0f) / (m + 1.0f), z = s * s;
  float p = 2.0f / 11;
  p = p * z + 2.0f / 9;
  p = p * z + 2.0f / 7;
  p = p * z + 2.0f / 5;
  p = p * z + 2.0f / 3;
  p = p * z * s + 2.0f * s;
  return static_cast<float>(exponent) * 0.693147181f + p;
}

// A bijection that spreads each bit over all (the constants of Wellons' lowbias32).
inline uint32_t mixed(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7FEB352Du;
  x = (x ^ (x >> 15)) * 0x846CA68Bu;
  return x ^ (x >> 16);
}

inline float gumbel(const Wish& wish, uint32_t id) {
  const uint32_t bits = mixed(mixed(id + wish.key[0]) ^ wish.key[1]);
  // 2^-23 times a number that float32 holds exactly: never 0 or 1, whose logarithms are not finite.
  const float uniform = (static_cast<float>(static_cast<int32_t>(bits >> 9)) + 0.5f) * 1.1920929e-7f;
  return -logarithm(-logarithm(uniform));
}

// The largest of values [n] and its first place. What is not a number is never the largest.
struct Best {
  float value;
  int64_t at;
};

inline Best best_of(const float* values, int64_t n) {
  float top[kLanes];
  int32_t block[kLanes];  // which vector it was in
  for (int j = 0; j < kLanes; ++j) top[j] = -INFINITY, block[j] = 0;
  const int64_t whole = n / kLanes;
  for (int64_t i = 0; i < whole; ++i) {
    const float* v = values + i * kLanes;
    for (int j = 0; j < kLanes; ++j) {
      const bool better = v[j] > top[j];
      top[j] = better ? v[j] : top[j];
      block[j] = better ? static_cast<int32_t>(i) : block[j];
    }
  }
  Best best{-INFINITY, 0};
  for (int j = 0; j < kLanes; ++j) {
    const int64_t at = int64_t{block[j]} * kLanes + j;
    if (top[j] > best.value || (top[j] == best.value && best.value > -INFINITY && at < best.at)) best = {top[j], at};
  }
  for (int64_t i = whole * kLanes; i < n; ++i)
    if (values[i] > best.value) best = {values[i], i};
  return best;
}

// Sum of weight[i] over all i with value[i] >= border.
inline float sum_from(const float* value, const float* weight, int64_t n, float border) {
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) {
      // By bits, not by a choice: GCC 12 mixes up the masks of two conditional AVX2 loads.
      const uint32_t mask = value[i + j] >= border ? ~0u : 0u;
      sums[j] += bits_to_float(float_to_bits(weight[i + j]) & mask);
    }
  for (; i < n; ++i) sums[0] += value[i] >= border ? weight[i] : 0.0f;
  float total = 0.0f;
  for (const float sum : sums) total += sum;
  return total;
}

inline int64_t count_from(const float* value, int64_t n, float border) {
  int32_t counts[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) counts[j] += value[i + j] >= border ? 1 : 0;
  int64_t count = 0;
  for (; i < n; ++i) count += value[i] >= border ? 1 : 0;
  for (const int32_t one : counts) count += one;
  return count;
}

// Floats as integers of the same order.
inline int64_t ordered(float value) {
  const uint32_t bits = float_to_bits(value);
  return bits >> 31 ? -static_cast<int64_t>(bits & 0x7fffffff) : static_cast<int64_t>(bits);
}

inline float from_ordered(int64_t key) {
  return key < 0 ? bits_to_float(static_cast<uint32_t>(-key) | 0x80000000u) : bits_to_float(static_cast<uint32_t>(key));
}

// The largest border for which enough(border) holds, between a low one that is enough and a high one. 32 halvings at most: exact.
template <class Enough>
inline float highest_border(float low, float high, Enough&& enough) {
  int64_t from = ordered(low), to = ordered(high);
  while (from < to) {
    const int64_t middle = from + (to - from + 1) / 2;
    if (enough(from_ordered(middle))) {
      from = middle;
    } else {
      to = middle - 1;
    }
  }
  return from_ordered(from);
}

// How far below the best the search for a border begins: few tokens are that likely, so few have to be looked at often.
constexpr float kNear[] = {4.0f, 10.0f, 25.0f};

// The border of top_k among scores [n] whose best is `top`: the k best are at or over it, and those that tie with the last.
inline float border_of_top_k(const float* scores, int64_t n, float top, int64_t k) {
  for (const float near : kNear) {
    if (count_from(scores, n, top - near) < k) continue;
    return highest_border(top - near, top, [&](float border) { return count_from(scores, n, border) >= k; });
  }
  return highest_border(kBanned, top, [&](float border) { return count_from(scores, n, border) >= k; });
}

// The border of top_p: the fewest likeliest tokens with that share of the whole, and those that tie. `share` [n]: exp(score - top).
inline float border_of_top_p(const float* scores, const float* share, int64_t n, float top, float p) {
  const float wanted = p * sum_from(scores, share, n, kBanned);
  float low = kBanned;
  for (const float near : kNear) {
    if (sum_from(scores, share, n, top - near) < wanted) continue;
    low = top - near;
    break;
  }
  return highest_border(low, top, [&](float border) { return sum_from(scores, share, n, border) >= wanted; });
}

inline int32_t draw_row(const float* logits, int64_t vocab, const Wish& wish, float* scratch) {
  const Best best = best_of(logits, vocab);
  if (!(wish.temperature > 0)) return static_cast<int32_t>(best.at);
  float *scores = scratch, *share = scratch + vocab;
  const float inverse = 1.0f / wish.temperature;
  for (int64_t i = 0; i < vocab; ++i) scores[i] = logits[i] * inverse;
  const float top = best.value * inverse;
  float border = -INFINITY;
  if (wish.top_k > 0 && wish.top_k < vocab) border = border_of_top_k(scores, vocab, top, wish.top_k);
  if (wish.top_p < 1) {
    // Shares of what top_k left: what it took away counts for nothing.
    for (int64_t i = 0; i < vocab; ++i) share[i] = scores[i] >= border ? exponential(scores[i] - top) : 0.0f;
    border = std::max(border, border_of_top_p(scores, share, vocab, top, wish.top_p));
  }
  if (wish.min_p > 0) border = std::max(border, top + std::log(wish.min_p));
  border = std::min(border, top);
  for (int64_t i = 0; i < vocab; ++i) {
    const float noisy = scores[i] + gumbel(wish, static_cast<uint32_t>(i));
    share[i] = scores[i] >= border ? noisy : kBanned;
  }
  return static_cast<int32_t>(best_of(share, vocab).at);
}

}  // namespace
}  // namespace slipstream

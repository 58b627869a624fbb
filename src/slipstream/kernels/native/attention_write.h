// Norms and rotary embedding, and this step's keys and values on their way into the cache. Written once over a Simd type.
#pragma once

#include <cmath>

#include "attention_tile.h"

namespace slipstream {
namespace {

constexpr float kLargestHalf = 65504.0f;
constexpr float kSmallestScaled = 1e-30f;  // a head whose numbers are all below this is held as zeros in an i8 cache

// The sum of squares of x [size]: lane by lane, then across, then what does not fill a vector.
template <class S>
inline float sum_of_squares(const float* x, int64_t size) {
  typename S::F sums = S::zero();
  int64_t i = 0;
  for (; i + S::lanes <= size; i += S::lanes) sums = S::fma(S::load(x + i), S::load(x + i), sums);
  float sum = S::sum(sums);
  for (; i < size; ++i) sum += x[i] * x[i];
  return sum;
}

// out = in [size], normed, rotated by the angles of `token` (pairs (i, i + c.pairs)), each if the call asks for it, and times
// `factor`. Neither overlaps the other.
template <class S>
inline void prepare(const Attention& c, const HeadNorm& norm, int64_t token, float factor, const float* in, float* out) {
  using F = typename S::F;
  if (norm.weight) {
    const float share = 1.0f / std::sqrt(sum_of_squares<S>(in, c.size) / static_cast<float>(c.size) + norm.eps);
    const F scale = S::set1(share), offset = S::set1(norm.offset);
    int64_t i = 0;
    for (; i + S::lanes <= c.size; i += S::lanes) {
      S::store(out + i, S::mul(S::mul(S::load(in + i), scale), S::add(S::load(norm.weight + i), offset)));
    }
    for (; i < c.size; ++i) out[i] = in[i] * share * (norm.weight[i] + norm.offset);
    in = out;
  }
  const F times = S::set1(factor);
  if (!c.cos) {
    int64_t i = 0;
    for (; i + S::lanes <= c.size; i += S::lanes) S::store(out + i, S::mul(S::load(in + i), times));
    for (; i < c.size; ++i) out[i] = in[i] * factor;
    return;
  }
  const int64_t half = c.pairs;
  const float *cos = c.cos + token * half, *sin = c.sin + token * half;
  int64_t i = 0;
  for (; i + S::lanes <= half; i += S::lanes) {
    const F first = S::load(in + i), second = S::load(in + i + half), x = S::load(cos + i), y = S::load(sin + i);
    S::store(out + i, S::mul(S::sub(S::mul(first, x), S::mul(second, y)), times));
    S::store(out + i + half, S::mul(S::add(S::mul(second, x), S::mul(first, y)), times));
  }
  for (; i < half; ++i) {
    const float first = in[i], second = in[i + half];
    out[i] = (first * cos[i] - second * sin[i]) * factor;
    out[i + half] = (second * cos[i] + first * sin[i]) * factor;
  }
  for (i = 2 * half; i < c.size; ++i) out[i] = in[i] * factor;
}

// The largest magnitude of x [size]; NaN if any of them is not finite.
template <class S>
inline float largest_of(const float* x, int64_t size) {
  typename S::F top = S::zero(), taint = S::zero();
  int64_t i = 0;
  for (; i + S::lanes <= size; i += S::lanes) {
    const typename S::F one = S::load(x + i);
    top = S::max(top, S::max(one, S::sub(S::zero(), one)));
    taint = S::fma(one, S::zero(), taint);  // infinity times zero is NaN
  }
  float largest = S::top(top), tainted = S::sum(taint);
  for (; i < size; ++i) {
    largest = std::fabs(x[i]) > largest ? std::fabs(x[i]) : largest;
    tainted += x[i] * 0.0f;
  }
  return largest + tainted;
}

// Stores x [size] to to[i * step] as the cache holds it: as it is, within the range of binary16, or in parts of `scale`.
template <class S, class T>
inline void store_elements(const float* x, int64_t size, T* to, int64_t step, float* scale) {
  using F = typename S::F;
  F factor = S::set1(1.0f);
  if constexpr (std::is_same_v<T, int8_t>) {
    const float largest = largest_of<S>(x, size);
    *scale = largest > kSmallestScaled ? largest * (1.0f / 127.0f) : largest * 0.0f;
    factor = S::set1(largest > kSmallestScaled ? 127.0f / largest : 0.0f);
  }
  for (int64_t i = 0; i < size; i += S::lanes) {
    const int64_t count = least(size - i, S::lanes);
    float some[S::lanes] = {};
    const float* from = x + i;
    if (count < S::lanes) {
      for (int64_t j = 0; j < count; ++j) some[j] = from[j];
      from = some;
    }
    F value = S::load(from);
    if constexpr (std::is_same_v<T, int8_t>) value = S::mul(value, factor);
    if constexpr (std::is_same_v<T, Half>) value = S::min(S::set1(kLargestHalf), S::max(S::set1(-kLargestHalf), value));
    if (step == 1 && count == S::lanes) {
      S::store(to + i, value);
    } else {
      T narrow[S::lanes];
      S::store(narrow, value);
      for (int64_t j = 0; j < count; ++j) to[(i + j) * step] = narrow[j];
    }
  }
}

// Writes k and v of one token of a row, of one KV head. `scratch` holds h floats.
template <class S, class T>
inline void write_token(const Attention& c, const CacheView<T>& cache, int64_t row, int64_t i, int64_t head, float* scratch) {
  const int64_t token = c.starts[row] + i, at = c.lengths[row] - (c.starts[row + 1] - c.starts[row]) + i;
  const int64_t page = c.page_table[row * c.pages_per_row + at / c.page_size], in_page = at % c.page_size;
  prepare<S>(c, c.k_norm, token, 1.0f, c.k + token * c.k_stride + head * c.size, scratch);
  store_elements<S>(scratch, c.size, cache.key(page, in_page, head), cache.k_element, cache.k_scale(page, in_page, head));
  const float* v = c.v + token * c.v_stride + head * c.size;
  store_elements<S>(v, c.size, cache.value(page, in_page, head), 1, cache.v_scale(page, in_page, head));
}

template <class S, class T>
void write_tokens(const Attention& c, int64_t row, int64_t first, int64_t end, float* scratch) {
  const CacheView<T> cache(c);
  for (int64_t i = first; i < end; ++i) {
    for (int64_t head = 0; head < c.kv_heads; ++head) write_token<S, T>(c, cache, row, i, head, scratch);
  }
}

}  // namespace
}  // namespace slipstream

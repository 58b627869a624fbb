// Norms and rotary embedding, and this step's keys and values on their way into the cache. Written once over a Simd type.
#pragma once

#include <cmath>

#include "attention_tile.h"

namespace slipstream {
namespace {

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

// out = in [size], normed, rotated by the angles of `token` (pairs (i, i + size/2)), each if the call asks for it, and times
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
  const int64_t half = c.size / 2;
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
}

template <class S, class T>
void write_tokens(const Attention& c, int64_t row, int64_t first, int64_t end, float* scratch) {
  const CacheView<T> cache(c);
  const int32_t* table = c.page_table + row * c.pages_per_row;
  const int64_t before = c.lengths[row] - (c.starts[row + 1] - c.starts[row]);
  for (int64_t i = first; i < end; ++i) {
    const int64_t token = c.starts[row] + i, at = before + i, page = table[at / c.page_size], in_page = at % c.page_size;
    for (int64_t head = 0; head < c.kv_heads; ++head) {
      const float* v = c.v + token * c.v_stride + head * c.size;
      T *key = cache.key(page, in_page, head), *value = cache.value(page, in_page, head);
      prepare<S>(c, c.k_norm, token, 1.0f, c.k + token * c.k_stride + head * c.size, scratch);
      int64_t d = 0;
      for (; d + S::lanes <= c.size; d += S::lanes) S::store(value + d, S::load(v + d));
      for (; d < c.size; ++d) convert::narrow(v[d], value + d);
      d = 0;
      if (cache.k_element == 1) {
        for (; d + S::lanes <= c.size; d += S::lanes) S::store(key + d, S::load(scratch + d));
      } else {
        T some[S::lanes];
        for (; d + S::lanes <= c.size; d += S::lanes) {
          S::store(some, S::load(scratch + d));
          for (int j = 0; j < S::lanes; ++j) key[(d + j) * cache.k_element] = some[j];
        }
      }
      for (; d < c.size; ++d) convert::narrow(scratch[d], key + d * cache.k_element);
    }
  }
}

}  // namespace
}  // namespace slipstream

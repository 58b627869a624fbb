// Rotary embedding, and this step's keys and values on their way into the cache. Written once over a Simd type.
#pragma once

#include "attention_tile.h"

namespace slipstream {
namespace {

// out = in [size], rotated by the angles of `token` if there are any: pairs (i, i + size/2).
inline void rotate(const Attention& c, int64_t token, const float* in, float* out) {
  const int64_t half = c.size / 2;
  if (!c.cos) {
    for (int64_t i = 0; i < c.size; ++i) out[i] = in[i];
    return;
  }
  const float *cos = c.cos + token * half, *sin = c.sin + token * half;
  for (int64_t i = 0; i < half; ++i) {
    const float first = in[i], second = in[i + half];
    out[i] = first * cos[i] - second * sin[i];
    out[i + half] = second * cos[i] + first * sin[i];
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
      rotate(c, token, c.k + token * c.k_stride + head * c.size, scratch);
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

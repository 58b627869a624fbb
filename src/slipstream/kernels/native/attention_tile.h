// The two products of attention over one block of keys, and how a block's keys and values are reached in the cache. Written
// once over a Simd type; included by one file for each instruction set, after its simd_*.h.
#pragma once

#include "attention.h"
#include "half.h"

#include <type_traits>

namespace slipstream {
namespace {

inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Addresses in the cache of one layer.
template <class T>
struct CacheView {
  T *k, *v;
  int64_t page, head, k_token, k_element, v_token;  // strides, in elements; the elements of a v are neighbours
  float *k_scales, *v_scales;                             // of a cache of i8; else null
  int64_t scale_page, scale_head, scale_token;

  explicit CacheView(const Attention& c) {
    const int64_t b = c.page_size, h = c.size;
    page = b * c.kv_heads * h;
    const bool by_head = c.layout == CacheLayout::by_head;
    head = by_head ? b * h : h;
    k_token = by_head ? 1 : c.kv_heads * h;
    k_element = by_head ? b : 1;
    v_token = by_head ? h : c.kv_heads * h;
    k = static_cast<T*>(c.cache_k) + c.layer * c.pages * page;
    v = static_cast<T*>(c.cache_v) + c.layer * c.pages * page;
    scale_page = b * c.kv_heads;
    scale_head = by_head ? b : 1;
    scale_token = by_head ? 1 : c.kv_heads;
    k_scales = v_scales = nullptr;
    if (std::is_same_v<T, int8_t>) {
      k_scales = c.k_scale + c.layer * c.pages * scale_page;
      v_scales = c.v_scale + c.layer * c.pages * scale_page;
    }
  }
  T* key(int64_t at, int64_t in_page, int64_t kv_head) const { return k + at * page + kv_head * head + in_page * k_token; }
  T* value(int64_t at, int64_t in_page, int64_t kv_head) const {
    return v + at * page + kv_head * head + in_page * v_token;
  }
  float* k_scale(int64_t at, int64_t in_page, int64_t kv_head) const { return scale(k_scales, at, in_page, kv_head); }
  float* v_scale(int64_t at, int64_t in_page, int64_t kv_head) const { return scale(v_scales, at, in_page, kv_head); }
  float* scale(float* all, int64_t at, int64_t in_page, int64_t kv_head) const {
    return all ? all + at * scale_page + kv_head * scale_head + in_page * scale_token : nullptr;
  }
};

// One block of keys and values, as groups of kGroup tokens: element d of key i of group c is keys[c][d * key_stride + i],
// element d of its value values[c][i * value_stride + d].
template <class T>
struct Block {
  const T* keys[kBlock / kGroup];
  const T* values[kBlock / kGroup];
  int64_t key_stride, value_stride;
};

// scores[r][i] = q[r] . key i, for R rows and the NC vectors of keys from vector `first` on. The sum over the elements is one
// chain for each score, so a score does not depend on the shape of the tile.
template <class S, class T, int R, int NC, bool Ahead>
inline void score_tile(const Block<T>& block, int first, const float* q, int64_t q_stride, int64_t size, float* scores,
                       const char* const* ahead) {
  typename S::F sum[R][NC];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < NC; ++c) sum[r][c] = S::zero();
  }
  const T* keys[NC];
#pragma GCC unroll 4
  for (int c = 0; c < NC; ++c) {
    const int at = (first + c) * S::lanes;
    keys[c] = block.keys[at / kGroup] + at % kGroup;
  }
  for (int64_t d = 0; d < size; ++d) {
    typename S::F key[NC];
#pragma GCC unroll 4
    for (int c = 0; c < NC; ++c) {
      key[c] = S::load(keys[c] + d * block.key_stride);
    }
    // Into the second cache, which has more requests under way than the first: 17 GB/s on one Zen 4 core instead of 12.
    constexpr int64_t bytes = kGroup * sizeof(T), line = 64;
    if (Ahead && d * bytes % line == 0) {
#pragma GCC unroll 8
      for (int i = 0; i < kBlock / kGroup; ++i) __builtin_prefetch(ahead[i] + d * bytes, 0, 2);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const typename S::F one = S::set1(q[r * q_stride + d]);
#pragma GCC unroll 4
      for (int c = 0; c < NC; ++c) sum[r][c] = S::fma(key[c], one, sum[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < NC; ++c) S::store(scores + r * kBlock + (first + c) * S::lanes, sum[r][c]);
  }
}

// The scores of R rows against the groups [low, high) of the block. `ahead`, or null: the keys of each group to be
// fetched meanwhile; then the block must have readable keys in all of its groups.
template <class S, class T, int R>
void score_rows(const Block<T>& block, int64_t low, int64_t high, const float* q, int64_t q_stride, int64_t size,
                float* scores, const char* const* ahead) {
  const int end = static_cast<int>(high * kGroup / S::lanes);
  int at = static_cast<int>(low * kGroup / S::lanes);
  if (ahead && S::tile_columns * S::lanes == kBlock) {
    score_tile<S, T, R, S::tile_columns, true>(block, 0, q, q_stride, size, scores, ahead);
    return;
  }
  for (; at + S::tile_columns <= end; at += S::tile_columns) {
    score_tile<S, T, R, S::tile_columns, false>(block, at, q, q_stride, size, scores, nullptr);
  }
  for (; at < end; ++at) score_tile<S, T, R, 1, false>(block, at, q, q_stride, size, scores, nullptr);
}

// sums[r] = sums[r] * keep[r] + weights[r] . values, for R rows, NC vectors of elements from element `first` on, and the
// tokens [low, high) of the block, one after the other.
template <class S, class T, int R, int NC, bool Ahead>
inline void mix_tile(const Block<T>& block, int64_t first, int64_t low, int64_t high, const float* weights, const float* keep,
                     float* sums, int64_t sum_stride, const char* const* ahead) {
  typename S::F sum[R][NC];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const typename S::F one = S::set1(keep[r]);
#pragma GCC unroll 4
    for (int c = 0; c < NC; ++c) sum[r][c] = S::mul(S::load(sums + r * sum_stride + first + c * S::lanes), one);
  }
  for (int64_t group = low / kGroup; group * kGroup < high; ++group) {
    const int64_t begin = group * kGroup, start = most(low, begin), end = least(high, begin + kGroup);
    const T* from = block.values[group] + (start - begin) * block.value_stride + first;
    for (int64_t i = start; i < end; ++i, from += block.value_stride) {
      if (Ahead) {
        const int64_t bytes = sum_stride * static_cast<int64_t>(sizeof(T));
        for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(ahead[group] + (i - begin) * bytes + at, 0, 2);
      }
      typename S::F value[NC];
#pragma GCC unroll 4
      for (int c = 0; c < NC; ++c) value[c] = S::load(from + c * S::lanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const typename S::F one = S::set1(weights[r * kBlock + i]);
#pragma GCC unroll 4
        for (int c = 0; c < NC; ++c) sum[r][c] = S::fma(value[c], one, sum[r][c]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < NC; ++c) S::store(sums + r * sum_stride + first + c * S::lanes, sum[r][c]);
  }
}

// `ahead`, or null: the values of each group to be fetched meanwhile.
template <class S, class T, int R>
void mix_rows(const Block<T>& block, int64_t low, int64_t high, const float* weights, const float* keep, float* sums,
              int64_t sum_stride, const char* const* ahead) {
  constexpr int wide = S::tile_columns;
  int64_t first = 0;
  if (ahead && wide * S::lanes <= sum_stride) {
    mix_tile<S, T, R, wide, true>(block, first, low, high, weights, keep, sums, sum_stride, ahead);
    first += wide * S::lanes;
  }
  for (; first + wide * S::lanes <= sum_stride; first += wide * S::lanes) {
    mix_tile<S, T, R, wide, false>(block, first, low, high, weights, keep, sums, sum_stride, nullptr);
  }
  for (; first < sum_stride; first += S::lanes) {
    mix_tile<S, T, R, 1, false>(block, first, low, high, weights, keep, sums, sum_stride, nullptr);
  }
}

// Calls body(std::integral_constant-like R, first row) for `rows` rows in tiles of nearly equal height.
template <int R>
struct Height {
  static constexpr int value = R;
};

template <class S, class Body>
inline void for_row_tiles(int64_t rows, Body&& body) {
  static_assert(S::tile_rows <= 6, "add cases below");
  const int64_t tiles = (rows + S::tile_rows - 1) / S::tile_rows;
  for (int64_t i = 0, row = 0; i < tiles; ++i) {
    const int64_t height = (rows - row + tiles - i - 1) / (tiles - i);
    switch (height) {
      case 1: body(Height<1>(), row); break;
      case 2: body(Height<2>(), row); break;
      case 3: body(Height<3>(), row); break;
      case 4: body(Height<4>(), row); break;
      case 5: body(Height<5>(), row); break;
      default: body(Height<6>(), row); break;
    }
    row += height;
  }
}

}  // namespace
}  // namespace slipstream

// What an instruction set provides to image models, written once over a Simd type; included by one file for each.
#pragma once

#include "exponential.h"
#include "picture_product.h"
#include "picture_winograd.h"

namespace slipstream {
namespace {

template <class S>
void soften_rows(float* scores, int64_t rows, int64_t keys, float* sums) {
  using F = typename S::F;
  const int64_t blocks = whole_blocks(keys), whole = keys / kWide;
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * kWide;
    // What lies beyond the keys must not be the largest, and counts nothing.
    for (int64_t i = keys - whole * kWide; whole < blocks && i < kWide; ++i) row[whole * kPanelBlock + i] = row[0];
    F top = S::load(row);
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t i = 0; i < kWide; i += S::lanes) top = S::max(top, S::load(row + b * kPanelBlock + i));
    const F largest = S::set1(S::top(top));
    F total = S::zero();
    for (int64_t b = 0; b < blocks; ++b) {
      float* at = row + b * kPanelBlock;
      for (int64_t i = 0; i < kWide; i += S::lanes) S::store(at + i, exponential<S>(S::sub(S::load(at + i), largest)));
      for (int64_t i = b < whole ? kWide : keys - whole * kWide; i < kWide; ++i) at[i] = 0.0f;
      for (int64_t i = 0; i < kWide; i += S::lanes) total = S::add(total, S::load(at + i));
    }
    sums[r] = S::sum(total);
  }
}

// `vectors` vectors of channels from `first` on.
template <class S, int vectors>
inline void add_up_vectors(const float* x, int64_t count, int64_t channels, int64_t first, const float* shift, float* sums) {
  using F = typename S::F;
  F sum[vectors], square[vectors], less[vectors];
  for (int v = 0; v < vectors; ++v) {
    const int64_t at = first + v * S::lanes;
    less[v] = S::load(shift + at), sum[v] = S::load(sums + at), square[v] = S::load(sums + channels + at);
  }
  for (int64_t i = 0; i < count; ++i)
    for (int v = 0; v < vectors; ++v) {
      const F value = S::sub(S::load(x + i * channels + first + v * S::lanes), less[v]);
      sum[v] = S::add(sum[v], value), square[v] = S::fma(value, value, square[v]);
    }
  for (int v = 0; v < vectors; ++v) {
    S::store(sums + first + v * S::lanes, sum[v]);
    S::store(sums + channels + first + v * S::lanes, square[v]);
  }
}

template <class S>
void add_up_places(const float* x, int64_t count, int64_t channels, const float* shift, float* sums) {
  constexpr int many = S::lanes == 16 ? 8 : 4;
  int64_t first = 0;
  for (; first + many * S::lanes <= channels; first += many * S::lanes)
    add_up_vectors<S, many>(x, count, channels, first, shift, sums);
  for (; first + S::lanes <= channels; first += S::lanes) add_up_vectors<S, 1>(x, count, channels, first, shift, sums);
  for (; first < channels; ++first)
    for (int64_t i = 0; i < count; ++i) {
      const float value = x[i * channels + first] - shift[first];
      sums[first] += value, sums[channels + first] += value * value;
    }
}

template <class S>
inline typename S::F silu_of(typename S::F x) {
  return S::div(x, S::add(S::set1(1.0f), exponential<S>(S::sub(S::zero(), x))));
}

template <class S>
void apply_places(const float* x, int64_t count, int64_t channels, const float* factor, const float* term, bool silu, float* y) {
  using F = typename S::F;
  for (int64_t i = 0; i < count; ++i, x += channels, y += channels) {
    int64_t j = 0;
    for (; j + S::lanes <= channels; j += S::lanes) {
      const F value = S::fma(S::load(x + j), S::load(factor + j), S::load(term + j));
      S::store(y + j, silu ? silu_of<S>(value) : value);
    }
    for (; j < channels; ++j) {
      float part[S::lanes] = {x[j] * factor[j] + term[j]};
      if (silu) S::store(part, silu_of<S>(S::load(part)));
      y[j] = part[0];
    }
  }
}

// The error function within 2e-7. Source: Abramowitz and Stegun 1964, formula 7.1.26.
template <class S>
inline typename S::F error_function(typename S::F x) {
  using F = typename S::F;
  const F one = S::set1(1.0f), size = S::max(x, S::sub(S::zero(), x));
  const F t = S::div(one, S::fma(S::set1(0.3275911f), size, one));
  F p = S::set1(1.061405429f);
  p = S::fma(p, t, S::set1(-1.453152027f));
  p = S::fma(p, t, S::set1(1.421413741f));
  p = S::fma(p, t, S::set1(-0.284496736f));
  p = S::fma(p, t, S::set1(0.254829592f));
  const F value = S::sub(one, S::mul(S::mul(p, t), exponential<S>(S::mul(S::sub(S::zero(), size), size))));
  // value * the sign of x, which is x over its size; near 0, where both vanish, so does value.
  return S::mul(value, S::div(x, S::max(size, S::set1(1e-30f))));
}

template <class S>
inline typename S::F gelu_of(typename S::F x, bool tanh) {
  using F = typename S::F;
  if (tanh) {  // x * (1 + tanh(z)) / 2 = x / (1 + exp(-2 z))
    const F inner = S::fma(S::mul(S::set1(0.044715f), S::mul(x, x)), x, x);
    return S::div(x, S::add(S::set1(1.0f), exponential<S>(S::mul(S::set1(-1.5957691216f), inner))));
  }
  const F half = S::mul(S::set1(0.5f), x);
  return S::fma(half, error_function<S>(S::mul(S::set1(0.70710678118f), x)), half);
}

template <class S>
void gelu_rows(const Gelu& c, int64_t first, int64_t last) {
  using F = typename S::F;
  for (int64_t row = first; row < last; ++row) {
    const float *const x = c.x + row * c.channels, *const other = c.other ? c.other + row * c.channels : nullptr;
    float* const y = c.y + row * c.channels;
    int64_t j = 0;
    for (; j + S::lanes <= c.channels; j += S::lanes) {
      const F value = gelu_of<S>(S::add(S::load(x + j), S::load(c.bias + j)), c.tanh);
      S::store(y + j, other ? S::mul(value, S::add(S::load(other + j), S::load(c.other_bias + j))) : value);
    }
    for (; j < c.channels; ++j) {
      float part[S::lanes] = {x[j] + c.bias[j]};
      S::store(part, gelu_of<S>(S::load(part), c.tanh));
      y[j] = other ? part[0] * (other[j] + c.other_bias[j]) : part[0];
    }
  }
}

template <class S>
PictureKernels picture_kernels_of() {
  return {enter_panel_of<S>, multiply_panels<S>, leave_panel_of<S>, soften_rows<S>,
          add_up_places<S>,  apply_places<S>,    gelu_rows<S>};
}

}  // namespace
}  // namespace slipstream

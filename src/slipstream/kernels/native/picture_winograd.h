// The transforms around the products of a convolution in Winograd's domain, written once over a Simd type.
#pragma once

#include "picture.h"

namespace slipstream {
namespace {

// Along one axis, in place of the matrices in convolution.py: tile + 2 points in, as many out.
template <class S, int tile, class F = typename S::F>
inline __attribute__((always_inline)) void enter_line(F* d, int step) {
  if constexpr (tile == 2) {
    const F a = d[0], b = d[step], c = d[2 * step], e = d[3 * step];
    d[0] = S::sub(a, c), d[step] = S::add(b, c), d[2 * step] = S::sub(c, b), d[3 * step] = S::sub(b, e);
  } else {
    const F four = S::set1(4.0f), five = S::set1(-5.0f), minus = S::set1(-4.0f), two = S::set1(2.0f);
    const F a = d[0], b = d[step], c = d[2 * step], e = d[3 * step], f = d[4 * step], g = d[5 * step];
    const F even = S::fma(minus, c, f), odd = S::fma(minus, b, e);
    const F near = S::sub(f, c), twice = S::mul(two, S::sub(e, b));
    d[0] = S::fma(four, a, S::fma(five, c, f));
    d[step] = S::add(even, odd), d[2 * step] = S::sub(even, odd);
    d[3 * step] = S::add(near, twice), d[4 * step] = S::sub(near, twice);
    d[5 * step] = S::fma(four, b, S::fma(five, e, g));
  }
}

// tile + 2 points in, `tile` results out, in the first places.
template <class S, int tile, class F = typename S::F>
inline __attribute__((always_inline)) void leave_line(F* d, int step) {
  if constexpr (tile == 2) {
    const F a = d[0], b = d[step], c = d[2 * step], e = d[3 * step];
    d[0] = S::add(S::add(a, b), c), d[step] = S::sub(S::sub(b, c), e);
  } else {
    const F a = d[0], b = d[step], c = d[2 * step], e = d[3 * step], f = d[4 * step], g = d[5 * step];
    const F sum = S::add(b, c), difference = S::sub(b, c), second = S::add(e, f), other = S::sub(e, f);
    d[0] = S::add(a, S::add(sum, second));
    d[step] = S::fma(S::set1(2.0f), other, difference);
    d[2 * step] = S::fma(S::set1(4.0f), second, sum);
    d[3 * step] = S::add(S::fma(S::set1(8.0f), other, difference), g);
  }
}

// Where a tile lies.
struct Place {
  int64_t picture, row, column;
  Place(const Convolution& c, int64_t index)
      : picture(index / (c.down() * c.across())), row(index / c.across() % c.down() * c.tile), column(index % c.across() * c.tile) {}
};

inline int64_t rows_of_panel(const Tiles& tiles, int64_t panel) {
  const int64_t left = tiles.count - panel * kPanelRows;
  return left < kPanelRows ? left : kPanelRows;
}

template <class S, int tile>
void enter_panel(const Convolution& c, const Tiles& tiles, int64_t panel) {
  constexpr int side = tile + 2, points = side * side;
  const int64_t count = rows_of_panel(tiles, panel), blocks = whole_blocks(c.in), height = c.height(), width = c.width();
  const float* at[kPanelRows][points];
  for (int64_t r = 0; r < count; ++r) {
    const Place place(c, tiles.first + panel * kPanelRows + r);
    for (int i = 0; i < side; ++i)
      for (int j = 0; j < side; ++j) {
        int64_t y = place.row + i - 1, x = place.column + j - 1;
        const bool inside = y >= 0 && y < height && x >= 0 && x < width;
        if (c.doubled) y /= 2, x /= 2;
        at[r][i * side + j] = inside ? c.x + ((place.picture * c.rows + y) * c.columns + x) * c.in : tiles.zeros;
      }
  }
  float* const base = tiles.rows + panel * blocks * kPanelBlock;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * kWide, there = c.in - first < kWide ? c.in - first : kWide;
    for (int64_t r = 0; r < count; ++r) {
      float part[points][kWide];  // of a last block that is not full
      if (there < kWide)
        for (int p = 0; p < points; ++p)
          for (int64_t i = 0; i < kWide; ++i) part[p][i] = i < there ? at[r][p][first + i] : 0.0f;
      for (int64_t lane = 0; lane < kWide; lane += S::lanes) {
        typename S::F d[points];
        for (int p = 0; p < points; ++p) d[p] = S::load(there < kWide ? part[p] + lane : at[r][p] + first + lane);
        for (int j = 0; j < side; ++j) enter_line<S, tile>(d + j, side);
        for (int i = 0; i < side; ++i) enter_line<S, tile>(d + i * side, 1);
        float* to = base + block * kPanelBlock + r * kWide + lane;
        for (int p = 0; p < points; ++p) S::store(to + p * tiles.rows_stride, d[p]);
      }
    }
  }
}

template <class S, int tile>
void leave_panel(const Convolution& c, const Tiles& tiles, int64_t panel) {
  constexpr int side = tile + 2, points = side * side;
  const int64_t count = rows_of_panel(tiles, panel), blocks = whole_blocks(c.out), height = c.height(), width = c.width();
  for (int64_t r = 0; r < count; ++r) {
    const int64_t own = panel * kPanelRows + r;
    const Place place(c, tiles.first + own);
    const int64_t high = height - place.row < tile ? height - place.row : tile;
    const int64_t wide = width - place.column < tile ? width - place.column : tile;
    const float* const from = tiles.products + own * blocks * kWide;
    float* const corner = c.y + ((place.picture * height + place.row) * width + place.column) * c.out;
    const float* const bias = c.bias + place.picture * c.out;
    for (int64_t first = 0; first < c.out; first += S::lanes) {
      typename S::F d[points];
      for (int p = 0; p < points; ++p) d[p] = S::load(from + p * tiles.products_stride + first);
      for (int j = 0; j < side; ++j) leave_line<S, tile>(d + j, side);
      for (int i = 0; i < tile; ++i) leave_line<S, tile>(d + i * side, 1);
      const int64_t there = c.out - first;
      for (int64_t i = 0; i < high; ++i)
        for (int64_t j = 0; j < wide; ++j) {
          float* to = corner + (i * width + j) * c.out + first;
          if (there >= S::lanes) {
            S::store(to, S::add(d[i * side + j], S::load(bias + first)));
          } else {
            float part[S::lanes];
            S::store(part, d[i * side + j]);
            for (int64_t k = 0; k < there; ++k) to[k] = part[k] + bias[first + k];
          }
        }
    }
  }
}

template <class S>
void enter_panel_of(const Convolution& c, const Tiles& tiles, int64_t panel) {
  (c.tile == 2 ? enter_panel<S, 2> : enter_panel<S, 4>)(c, tiles, panel);
}

template <class S>
void leave_panel_of(const Convolution& c, const Tiles& tiles, int64_t panel) {
  (c.tile == 2 ? leave_panel<S, 2> : leave_panel<S, 4>)(c, tiles, panel);
}

}  // namespace
}  // namespace slipstream

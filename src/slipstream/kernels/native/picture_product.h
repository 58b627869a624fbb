// Products of panels of rows with packed float32 weights, written once over a Simd type.
#pragma once

#include <utility>

#include "picture.h"

namespace slipstream {
namespace {

#define UNROLL_FULLY _Pragma("GCC unroll 16")
#define UNROLL_SOME _Pragma("GCC unroll 4")

// What is fetched while a tile is computed: so many cache lines for each block of inputs.
struct Ahead {
  const char* from;
  int lines;
};

// `count` rows times `vectors` vectors of outputs, all of their sums in registers.
template <class S, int count, int vectors>
__attribute__((noinline)) void product_tile(const float* rows, const float* const* weights, int64_t blocks, float* const* to,
                                            int64_t stride, Ahead ahead) {
  using F = typename S::F;
  F sums[count][vectors];
  const float* w[vectors];
  UNROLL_FULLY for (int v = 0; v < vectors; ++v) {
    w[v] = weights[v];
    UNROLL_FULLY for (int r = 0; r < count; ++r) sums[r][v] = S::zero();
  }
  for (int64_t block = 0; block < blocks; ++block, rows += kPanelBlock) {
    for (int i = 0; i < ahead.lines; ++i, ahead.from += 64) __builtin_prefetch(ahead.from, 0, 2);
    UNROLL_SOME for (int64_t j = 0; j < kWide; ++j) {
      F weight[vectors];
      UNROLL_FULLY for (int v = 0; v < vectors; ++v) weight[v] = S::load(w[v] + j * kWide);
      UNROLL_FULLY for (int r = 0; r < count; ++r) {
        const F x = S::set1(rows[r * kWide + j]);
        UNROLL_FULLY for (int v = 0; v < vectors; ++v) sums[r][v] = S::fma(weight[v], x, sums[r][v]);
      }
    }
    UNROLL_FULLY for (int v = 0; v < vectors; ++v) w[v] += kWide * kWide;
  }
  UNROLL_FULLY for (int r = 0; r < count; ++r)
    UNROLL_FULLY for (int v = 0; v < vectors; ++v) S::store(to[v] + r * stride, sums[r][v]);
}

// So many rows and vectors of outputs fill the registers.
template <class S>
constexpr int kTileRows = S::lanes == 16 ? 12 : S::lanes == 8 ? 6 : 4;
constexpr int kTileVectors = 2;

using ProductTile = void (*)(const float*, const float* const*, int64_t, float* const*, int64_t, Ahead);

template <class S, int vectors, int... R>
ProductTile tile_of(int64_t rows, std::integer_sequence<int, R...>) {
  static constexpr ProductTile table[] = {product_tile<S, R + 1, vectors>...};
  return table[rows - 1];
}

// See PictureKernels.
template <class S>
void multiply_panels(const float* panels, int64_t rows, int64_t in_blocks, const float* weights, int64_t first, int64_t last,
                     const Placed& to, const float* next) {
  constexpr int most = kTileRows<S>;
  const std::make_integer_sequence<int, most> sizes;
  const int64_t in = in_blocks * kWide, count = (rows + kPanelRows - 1) / kPanelRows, end = last * kWide;
  for (int64_t column = first * kWide; column < end;) {
    const int vectors = column + kTileVectors * S::lanes <= end ? kTileVectors : 1;
    const float* weight[kTileVectors];
    float* result[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) {
      const int64_t at = column + (v < vectors ? v : 0) * S::lanes;
      weight[v] = weights + at / kWide * in * kWide + at % kWide;
      result[v] = to.y + at / kWide * to.block + at % kWide;
    }
    column += vectors * S::lanes;
    // The next columns' weights, evenly over the panels of rows.
    const float* ahead = column < end ? weights + column / kWide * in * kWide : next;
    const int64_t lines = ahead && column % kWide == 0 ? (vectors * S::lanes + count - 1) / count : 0;
    for (int64_t panel = 0; panel < count; ++panel) {
      const int64_t there = rows - panel * kPanelRows < kPanelRows ? rows - panel * kPanelRows : kPanelRows;
      for (int64_t row = 0; row < there; row += most) {
        const int64_t some = there - row < most ? there - row : most;
        float* y[kTileVectors];
        for (int v = 0; v < kTileVectors; ++v) y[v] = result[v] + panel * to.panel + row * to.row;
        const auto tile = vectors == kTileVectors ? tile_of<S, kTileVectors>(some, sizes) : tile_of<S, 1>(some, sizes);
        const bool fetches = lines > 0 && row == 0;
        const char* from = fetches ? reinterpret_cast<const char*>(ahead) + panel * in_blocks * lines * 64 : nullptr;
        tile(panels + panel * in_blocks * kPanelBlock + row * kWide, weight, in_blocks, y, to.row,
             {from, fetches ? static_cast<int>(lines) : 0});
      }
    }
  }
}

}  // namespace
}  // namespace slipstream

// Kernels of image models: 3x3 convolutions in Winograd's domain, attention of whole batches, and norms.
//
// Products are of float32. Their rows lie in panels of kPanelRows rows, each as [inputs / 16][kPanelRows][16], so that a tile
// reads one stretch of memory; weights lie as [outputs / 16][inputs][16]. Both are padded with zeros to whole blocks of 16.
// Sources: Lavin and Gray 2015 (arXiv:1509.09308) for the convolutions.
#pragma once

#include <cstdint>

#include "isa.h"

namespace slipstream {

constexpr int64_t kPanelRows = 12, kWide = 16, kPanelBlock = kPanelRows * kWide;

constexpr int64_t whole_blocks(int64_t size) { return (size + kWide - 1) / kWide; }
constexpr int64_t padded(int64_t size) { return whole_blocks(size) * kWide; }

// A 3x3 convolution with stride 1 and zeros around the picture.
struct Convolution {
  const float* x;              // [b, rows, columns, in]
  int64_t batch, rows, columns, in, out;
  bool doubled;                // each row and column of x counts twice: the result has 2 * rows and 2 * columns
  int64_t tile;                // 2 or 4: a tile has so many results a side
  const float* weights;        // [(tile + 2)^2][out / 16][padded(in)][16], in Winograd's domain
  const float* bias;           // [b, out]
  float* y;                    // [b, rows', columns', out]

  int64_t height() const { return doubled ? 2 * rows : rows; }
  int64_t width() const { return doubled ? 2 * columns : columns; }
  int64_t down() const { return (height() + tile - 1) / tile; }
  int64_t across() const { return (width() + tile - 1) / tile; }
  int64_t points() const { return (tile + 2) * (tile + 2); }
};

// softmax(q k' * scale) v.
struct BatchedAttention {
  const float *q, *k, *v;  // [b, t, n, h], [b, c, n, h] twice
  int64_t batch, queries, keys, heads, size;
  float scale;
  float* y;  // [b, t, n, h]
};

// Mean 0 and variance 1 over each of `groups` runs of channels, then times weight plus bias; then, with `silu`, x * sigmoid(x).
struct GroupNorm {
  const float* x;  // [b, places, channels]
  int64_t batch, places, channels, groups;
  const float *weight, *bias;  // [channels]
  float eps;
  bool silu;
  float* y;
};

// gelu(x + bias), with `other` times (other + other_bias). `tanh`: GELU by its formula with a hyperbolic tangent.
struct Gelu {
  const float *x, *bias;            // [rows, channels], [channels]
  const float *other, *other_bias;  // the same, or null
  int64_t rows, channels;
  bool tanh;
  float* y;  // [rows, channels]
};

// All throw std::bad_alloc where there is no memory.
void convolve(const Convolution& call);
void attend_batch(const BatchedAttention& call);
void norm_groups(const GroupNorm& call);
void gelu(const Gelu& call);

// Some tiles of a convolution on their way: `first` of them all, `count` of them here. Transformed inputs are panels of rows, and
// products [count][padded(out)], for each point `rows_stride` and `products_stride` floats after those of the one before.
struct Tiles {
  int64_t first, count;
  float *rows, *products;
  int64_t rows_stride, products_stride;
  const float* zeros;  // [padded(in)]
};

// Where the results of a product go: floats from one panel of rows, one row, and one block of 16 outputs to the next.
struct Placed {
  float* y;
  int64_t panel, row, block;
};

struct PictureKernels {
  // The transform of the tiles of one panel of rows.
  void (*enter)(const Convolution& call, const Tiles& tiles, int64_t panel);
  // Blocks [first, last) of the outputs for `rows` rows. `next`: weights that will be needed after these, or null.
  void (*multiply)(const float* panels, int64_t rows, int64_t in_blocks, const float* weights, int64_t first, int64_t last,
                   const Placed& to, const float* next);
  // The results of one panel of tiles.
  void (*leave)(const Convolution& call, const Tiles& tiles, int64_t panel);
  // Rows of scores [in_blocks][kPanelRows][16] become exp(score - the row's largest), 0 beyond `keys`; `sums` takes their sums.
  void (*soften)(float* scores, int64_t rows, int64_t keys, float* sums);
  // Adds the sums of each channel over places, and of each channel's squares, less `shift` [channels] each, to sums[0 ..
  // channels) and sums[channels ..): `count` places.
  void (*add_up)(const float* x, int64_t count, int64_t channels, const float* shift, float* sums);
  // y = x * factor + term by channel, then silu where asked for.
  void (*apply)(const float* x, int64_t count, int64_t channels, const float* factor, const float* term, bool silu, float* y);
  // Rows [first, last).
  void (*gelu)(const Gelu& call, int64_t first, int64_t last);
};

const PictureKernels& picture_kernels();
const PictureKernels& picture_kernels_portable();
const PictureKernels& picture_kernels_avx2();
const PictureKernels& picture_kernels_avx512();

}  // namespace slipstream

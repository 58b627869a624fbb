#include "picture.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <new>

#include "gemm_kernels.h"
#include "pool.h"

namespace slipstream {
namespace {

// Floats of a chunk's transformed inputs and products together: both stay in the last-level cache.
constexpr int64_t kChunkFloats = 4 << 20;
// Floats of one point's rows: they stay in a processor's second-level cache while columns of weights pass.
constexpr int64_t kRowFloats = 128 << 10;
// Floats of the weights that one piece of work multiplies with.
constexpr int64_t kWeightFloats = 64 << 10;
// Floats of the scores that one piece of attention has at a time.
constexpr int64_t kScoreFloats = 96 << 10;
// Floats that one piece of an activation makes.
constexpr int64_t kGeluFloats = 64 << 10;
// Places of a picture that one piece of a norm passes over.
constexpr int64_t kNormPlaces = 32;

float* room(Memory& memory, int64_t floats) {
  auto* data = static_cast<float*>(memory.at_least(static_cast<size_t>(floats) * sizeof(float)));
  if (!data) throw std::bad_alloc();
  return data;
}

int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory of the thread that calls, which the pool's threads share during the call.
thread_local Memory workspace;

}  // namespace

const PictureKernels& picture_kernels() {
  switch (isa()) {
#if defined(__x86_64__)
    case Isa::avx512vnni: return picture_kernels_avx512();
    case Isa::avx2: return picture_kernels_avx2();
#endif
    default: return picture_kernels_portable();
  }
}

void convolve(const Convolution& c) {
  const PictureKernels& kernels = picture_kernels();
  const int64_t all = c.batch * c.down() * c.across(), points = c.points();
  const int64_t in = padded(c.in), out = padded(c.out), out_blocks = out / kWide;
  if (all == 0) return;
  // Chunks of tiles of one size, in whole panels.
  const int64_t most = std::max(kPanelRows, std::min(kChunkFloats / (points * (in + out)), kRowFloats / in));
  const int64_t size = ceiling(ceiling(all, ceiling(all, most)), kPanelRows) * kPanelRows;
  Tiles tiles;
  // Points apart from one another by no power of two: their lines would share places in the first-level cache.
  tiles.rows_stride = size * in + kWide, tiles.products_stride = size * out + kWide;
  float* memory = room(workspace, in + points * (tiles.rows_stride + tiles.products_stride));
  std::fill(memory, memory + in, 0.0f);
  tiles.zeros = memory, tiles.rows = memory + in, tiles.products = tiles.rows + points * tiles.rows_stride;
  const int64_t step = std::max<int64_t>(2, kWeightFloats / (in * kWide) / 2 * 2);
  const int64_t groups = ceiling(out_blocks, step), pieces = points * groups;
  const auto weights_of = [&](int64_t piece) { return c.weights + piece / groups * in * out; };
  const auto first_of = [&](int64_t piece) { return piece % groups * step; };
  for (tiles.first = 0; tiles.first < all; tiles.first += size) {
    tiles.count = std::min(size, all - tiles.first);
    const int64_t panels = ceiling(tiles.count, kPanelRows);
    parallel(panels, [&](int64_t panel) { kernels.enter(c, tiles, panel); });
    parallel(pieces, [&](int64_t piece) {
      const int64_t point = piece / groups, first = first_of(piece), later = piece + threads();
      const float* next = later < pieces ? weights_of(later) + first_of(later) * in * kWide : nullptr;
      const Placed to{tiles.products + point * tiles.products_stride, kPanelRows * out, out, kWide};
      kernels.multiply(tiles.rows + point * tiles.rows_stride, tiles.count, in / kWide, weights_of(piece), first,
                       std::min(out_blocks, first + step), to, next);
    });
    parallel(panels, [&](int64_t panel) { kernels.leave(c, tiles, panel); });
  }
}

void attend_batch(const BatchedAttention& c) {
  if (!c.batch || !c.queries || !c.heads || !c.keys || !c.size) return;
  const PictureKernels& kernels = picture_kernels();
  const int64_t keys = padded(c.keys), size = padded(c.size), key_blocks = keys / kWide, size_blocks = size / kWide;
  const int64_t head = keys * size, all = c.batch * c.heads, row = c.heads * c.size;
  const int64_t panels = std::max<int64_t>(1, std::min<int64_t>(4, kScoreFloats / (kPanelRows * keys)));
  // Keys as the weights of the first product, values as those of the second, then what each thread needs for itself.
  const int64_t own = panels * kPanelRows * (size + keys + 1) + kPanelRows * size;
  float* const packed_keys = room(workspace, 2 * all * head);
  float* const packed_values = packed_keys + all * head;
  parallel(all * key_blocks, [&](int64_t piece) {
    const int64_t index = piece / key_blocks, block = piece % key_blocks;
    const int64_t there = std::min(kWide, c.keys - block * kWide);
    const int64_t from = (index / c.heads * c.keys + block * kWide) * row + index % c.heads * c.size;
    float* const key = packed_keys + index * head + block * kWide * size;
    float* const value = packed_values + index * head + block * kWide * kWide;
    std::fill(key, key + kWide * size, 0.0f);
    for (int64_t j = 0; j < there; ++j)
      for (int64_t i = 0; i < c.size; ++i) key[i * kWide + j] = c.k[from + j * row + i];
    for (int64_t b = 0; b < size_blocks; ++b)
      for (int64_t j = 0; j < kWide; ++j) {
        float* const to = value + (b * keys + j) * kWide;
        const int64_t wide = j < there ? std::min(kWide, c.size - b * kWide) : 0;
        std::copy_n(c.v + from + j * row + b * kWide, wide, to);
        std::fill(to + wide, to + kWide, 0.0f);
      }
  });
  const int64_t rows = panels * kPanelRows, groups = ceiling(c.queries, rows);
  std::atomic<bool> exhausted{false};  // chunks must not throw
  parallel(all * groups, [&](int64_t piece) {
    const int64_t index = piece / groups, first = piece % groups * rows, count = std::min(rows, c.queries - first);
    const int64_t at = (index / c.heads * c.queries + first) * row + index % c.heads * c.size;
    static thread_local Memory memory;
    auto* const queries = static_cast<float*>(memory.at_least(static_cast<size_t>(own) * sizeof(float)));
    if (!queries) {
      exhausted = true;
      return;
    }
    float *const scores = queries + rows * size, *const sums = scores + rows * keys, *const mixed = sums + rows;
    for (int64_t r = 0; r < count; ++r) {
      float* const to = queries + r / kPanelRows * kPanelRows * size + r % kPanelRows * kWide;
      for (int64_t i = 0; i < size; ++i)
        to[i / kWide * kPanelBlock + i % kWide] = i < c.size ? c.q[at + r * row + i] * c.scale : 0.0f;
    }
    kernels.multiply(queries, count, size_blocks, packed_keys + index * head, 0, key_blocks,
                     {scores, kPanelRows * keys, kWide, kPanelBlock}, nullptr);
    for (int64_t panel = 0; panel * kPanelRows < count; ++panel) {
      const int64_t some = std::min(kPanelRows, count - panel * kPanelRows);
      float* const own_scores = scores + panel * kPanelRows * keys;
      kernels.soften(own_scores, some, c.keys, sums);
      kernels.multiply(own_scores, some, key_blocks, packed_values + index * head, 0, size_blocks, {mixed, 0, size, kWide},
                       nullptr);
      for (int64_t r = 0; r < some; ++r) {
        float* const y = c.y + at + (panel * kPanelRows + r) * row;
        const float share = 1.0f / sums[r];
        for (int64_t i = 0; i < c.size; ++i) y[i] = mixed[r * size + i] * share;
      }
    }
  });
  if (exhausted) throw std::bad_alloc();
}

void gelu(const Gelu& c) {
  if (!c.channels) return;
  const int64_t step = std::max<int64_t>(1, kGeluFloats / c.channels);
  const PictureKernels& kernels = picture_kernels();
  parallel(ceiling(c.rows, step), [&](int64_t piece) { kernels.gelu(c, piece * step, std::min(c.rows, (piece + 1) * step)); });
}

void norm_groups(const GroupNorm& c) {
  if (!c.batch || !c.places || !c.channels) return;
  const PictureKernels& kernels = picture_kernels();
  const int64_t pieces = ceiling(c.places, kNormPlaces), width = 2 * c.channels, each = c.channels / c.groups;
  float* const sums = room(workspace, (c.batch * pieces + c.batch) * width);
  float* const applied = sums + c.batch * pieces * width;  // of each picture: factors and terms
  const auto picture = [&](int64_t index) { return c.x + index * c.places * c.channels; };
  const auto count = [&](int64_t piece) { return std::min(kNormPlaces, c.places - piece * kNormPlaces); };
  parallel(c.batch * pieces, [&](int64_t at) {
    const int64_t index = at / pieces, piece = at % pieces;
    float* const own = sums + at * width;
    std::fill(own, own + width, 0.0f);
    kernels.add_up(picture(index) + piece * kNormPlaces * c.channels, count(piece), c.channels, picture(index), own);
  });
  parallel(c.batch * c.groups, [&](int64_t at) {
    const int64_t index = at / c.groups, first = at % c.groups * each;
    double total = 0, squares = 0;  // of x, and of x without its channel's first number
    double means = 0;
    for (int64_t channel = first; channel < first + each; ++channel) {
      double sum = 0, square = 0;
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const float* own = sums + (index * pieces + piece) * width + channel;
        sum += own[0], square += own[c.channels];
      }
      const double shift = picture(index)[channel], places = static_cast<double>(c.places), mean = shift + sum / places;
      total += mean, means += mean * mean, squares += square / places - sum / places * (sum / places);
    }
    const double size = static_cast<double>(each), mean = total / size;
    const double variance = std::max(0.0, squares / size + (means / size - mean * mean));
    const double scale = 1.0 / std::sqrt(variance + c.eps);
    float *const factors = applied + index * width, *const terms = factors + c.channels;
    for (int64_t channel = first; channel < first + each; ++channel) {
      factors[channel] = static_cast<float>(scale * c.weight[channel]);
      terms[channel] = static_cast<float>(c.bias[channel] - mean * scale * c.weight[channel]);
    }
  });
  parallel(c.batch * pieces, [&](int64_t at) {
    const int64_t index = at / pieces, first = (index * c.places + at % pieces * kNormPlaces) * c.channels;
    const float* const factors = applied + index * width;
    kernels.apply(c.x + first, count(at % pieces), c.channels, factors, factors + c.channels, c.silu, c.y + first);
  });
}

}  // namespace slipstream

// Ragged paged attention: chunks of prompts and decoding rows of one step, each over its own pages.
//
// A step's keys and values are written into their pages, then each query attends to its sequence up to itself. No row may read
// what another row writes in the same step: a row of one token is written by whoever attends to it. Keys are taken
// in blocks of kBlock and segments of kSegment, whose borders are absolute positions. Within a block a softmax with its own
// maximum is folded into the segment's, and the segments, in order, into the whole. So a query's result depends on nothing
// but its own sequence: not on the batch, on how its prompt was cut, or on the threads. Segments may be computed apart.
//
// Sources: paged attention is Kwon et al. 2023 (arXiv:2309.06180), the running softmax Milakov and Gimelshein 2018
// (arXiv:1805.02867), splitting the keys Dao et al. 2023 (https://crfm.stanford.edu/2023/10/12/flashdecoding.html).
#pragma once

#include <cstdint>

#include "isa.h"

namespace slipstream {

// i8: a number q stands for q * scale, with one scale for each token and KV head of K and of V.
enum class CacheType : int { f32, f16, bf16, i8 };

// How a page holds its tokens. by_token: K and V are [l, P, b, k, h]. by_head: K is [l, P, k, h, b], so that one vector has the
// same element of neighbouring keys, and V is [l, P, k, b, h]. by_head is the fast one where b and h are multiples of 16.
// Scales are [l, P, b, k] and [l, P, k, b].
enum class CacheLayout : int { by_token, by_head };

// An RMS norm over each head, or none where `weight` is null: x / sqrt(mean(x^2) + eps) * (weight + offset).
struct HeadNorm {
  const float* weight;  // [h]
  float eps, offset;
};

struct Attention {
  int64_t tokens, heads, kv_heads, size;      // t, n, k, h; heads is a multiple of kv_heads
  int64_t rows, pages_per_row;                // s, p
  int64_t layers, pages, page_size;           // l, P, b
  int64_t layer;                              // the layer to write and read
  const float *q, *k, *v;                     // [t, n, h], [t, k, h], [t, k, h]; a token's values are contiguous
  int64_t q_stride, k_stride, v_stride;       // floats from one token to the next
  HeadNorm q_norm, k_norm;
  const float *cos, *sin;                     // [t, pairs] to rotate q and k by after their norms, or null
  int64_t pairs;                              // of elements (i, i + pairs) that are rotated; what follows them is not
  void *cache_k, *cache_v;
  float *k_scale, *v_scale;                   // of a cache of i8; else null
  CacheType type;
  CacheLayout layout;
  const int32_t *starts, *lengths, *page_table;  // [s + 1], [s], [s, p]
  float scale;
  int64_t window;                             // keys that a query sees, itself included; 0: all
  float soft_cap;                             // 0: none
  const float* sinks;                         // [n], or null: a score of each head that every query sees, of a value of zeros
  float* out;                                 // [t, n, h]; rows of padding become 0
};

// Returns null, or what is wrong with the call: then nothing has been written. The text is static.
const char* attend(const Attention& call, Isa isa);

constexpr int64_t kBlock = 64, kGroup = 16, kSegment = 256;

// Queries first .. first + queries - 1 of a row, for one KV head and all query heads that share it, over some segments.
struct AttentionTile {
  int64_t row, kv_head, first, queries;
  int64_t first_segment, end_segment;
  float* partial;  // where to leave maxima, sums and weighted values if other tiles have the other segments; else null
  int64_t split;   // which of the call's divided tiles this is a part of, if there is a partial result
};

// One instruction set's implementation.
struct AttentionKernels {
  // Writes k and v of tokens [first, end) of a row (both counted from its first in this step) into their pages. Only for rows
  // of several tokens: the tile that attends to a single one writes it.
  void (*write)(const Attention& call, int64_t row, int64_t first, int64_t end, float* scratch);
  // `next`, or null: what the same thread will probably compute next, to fetch its first keys in time.
  void (*tile)(const Attention& call, const AttentionTile& tile, const AttentionTile* next, float* scratch);
  // Folds `count` partial results, in order of their segments, and writes the output.
  void (*merge)(const Attention& call, const AttentionTile& tile, const float* partials, int64_t count, float* scratch);
};

// Floats of one tile's partial result, and of the scratch memory that each of the functions above may need.
int64_t partial_floats(const Attention& call, int64_t queries);
int64_t scratch_floats(const Attention& call, int64_t queries);

const AttentionKernels& attention_kernels_portable();
const AttentionKernels& attention_kernels_avx2();
const AttentionKernels& attention_kernels_avx512();

}  // namespace slipstream

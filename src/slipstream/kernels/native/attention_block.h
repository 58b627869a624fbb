// How a tile reaches a block of keys and values: where it lies in the cache, or widened to floats. Written once over a Simd type.
#pragma once

#include "attention_tile.h"

namespace slipstream {
namespace {

// Hands out parts of a piece of memory, each beginning where a vector does.
class Scratch {
 public:
  explicit Scratch(float* memory) : next_(memory) {}
  float* take(int64_t floats) {
    float* memory = next_;
    next_ += round_up(floats, kGroup);
    return memory;
  }

 private:
  float* next_;
};

template <class S, class T>
class BlockReader {
 public:
  static constexpr bool kScaled = std::is_same_v<T, int8_t>;

  BlockReader(const Attention& call, int64_t row, int64_t kv_head, Scratch* scratch)
      : cache(call), c_(call), row_(row), kv_head_(kv_head), stride_(round_up(call.size, kGroup)),
        table_(call.page_table + row * call.pages_per_row) {
    key_memory_ = scratch->take(stride_ * kBlock);
    value_memory_ = scratch->take(stride_ * kBlock);
    key_scales_ = scratch->take(kBlock);
    value_scales_ = scratch->take(kBlock);
  }

  // Tokens [low, high) of the block at `start` may be read. Groups that have none of them stand for the nearest that has.
  Block<T> direct_block(int64_t start, int64_t low, int64_t high) const {
    Block<T> block;
    for (int64_t group = 0; group < kBlock / kGroup; ++group) {
      const Place place = place_of(row_, start, least(most(group, low / kGroup), (high - 1) / kGroup));
      block.keys[group] = cache.key(place.page, place.in_page, kv_head_);
      block.values[group] = cache.value(place.page, place.in_page, kv_head_);
    }
    block.key_stride = cache.k_element;
    block.value_stride = cache.v_token;
    return block;
  }

  // Where the group of a block of a row is.
  struct Place {
    int64_t page, in_page;
  };

  Place place_of(int64_t row, int64_t start, int64_t group) const {
    const auto at = static_cast<uint32_t>(start + group * kGroup), size = static_cast<uint32_t>(c_.page_size);
    return {c_.page_table[row * c_.pages_per_row + at / size], at % size};
  }

  void widen_keys(int64_t start, int64_t low, int64_t high) const {
    const bool even = c_.page_size % kGroup == 0;
    for (int64_t group = low / kGroup; group * kGroup < high; ++group) {
      const int64_t first = group * kGroup, at = start + first;
      float* to = key_memory_ + first;
      if (even && c_.layout == CacheLayout::by_head) {
        const T* from = cache.key(table_[at / c_.page_size], at % c_.page_size, kv_head_);
        for (int64_t d = 0; d < c_.size; ++d) {
          for (int i = 0; i < kGroup; i += S::lanes) S::store(to + d * kBlock + i, S::load(from + d * c_.page_size + i));
        }
        continue;
      }
      const T* from[kGroup];
      for (int64_t i = 0; i < kGroup; ++i) {
        const int64_t token = at + i;
        const bool there = first + i >= low && first + i < high;
        from[i] = there ? cache.key(table_[token / c_.page_size], token % c_.page_size, kv_head_) : nullptr;
      }
      int64_t d = 0;
      if (cache.k_element == 1) {
        for (; d + S::lanes <= c_.size; d += S::lanes) {
          for (int64_t i = 0; i < kGroup; i += S::lanes) {
            typename S::F square[S::lanes];
            for (int j = 0; j < S::lanes; ++j) square[j] = from[i + j] ? S::load(from[i + j] + d) : S::zero();
            S::transpose(square);
            for (int j = 0; j < S::lanes; ++j) S::store(to + (d + j) * kBlock + i, square[j]);
          }
        }
      }
      for (; d < c_.size; ++d) {
        for (int64_t i = 0; i < kGroup; ++i) {
          to[d * kBlock + i] = from[i] ? convert::widen(from[i][d * cache.k_element]) : 0.0f;
        }
      }
    }
  }

  void widen_values(int64_t start, int64_t low, int64_t high) const {
    for (int64_t i = low; i < high; ++i) {
      const int64_t token = start + i;
      const T* from = cache.value(table_[token / c_.page_size], token % c_.page_size, kv_head_);
      float* to = value_memory_ + i * stride_;
      int64_t d = 0;
      for (; d + S::lanes <= c_.size; d += S::lanes) S::store(to + d, S::load(from + d));
      for (; d < c_.size; ++d) to[d] = convert::widen(from[d]);
      for (; d < stride_; ++d) to[d] = 0.0f;
    }
  }

  // The scales of tokens [low, high) of the block.
  void load_scales(int64_t start, int64_t low, int64_t high) const {
    for (int64_t i = low; i < high; ++i) {
      const auto at = static_cast<uint32_t>(start + i), size = static_cast<uint32_t>(c_.page_size);
      const int64_t page = table_[at / size], in_page = at % size;
      key_scales_[i] = *cache.k_scale(page, in_page, kv_head_);
      value_scales_[i] = *cache.v_scale(page, in_page, kv_head_);
    }
  }

  Block<float> widened() const {
    Block<float> block;
    for (int64_t group = 0; group < kBlock / kGroup; ++group) {
      block.keys[group] = key_memory_ + group * kGroup;
      block.values[group] = value_memory_ + group * kGroup * stride_;
    }
    block.key_stride = kBlock;
    block.value_stride = stride_;
    return block;
  }

  const float* key_scales() const { return key_scales_; }
  const float* value_scales() const { return value_scales_; }

  const CacheView<T> cache;

 private:
  const Attention& c_;
  const int64_t row_, kv_head_, stride_;
  const int32_t* const table_;
  float *key_memory_, *value_memory_, *key_scales_, *value_scales_;
};

}  // namespace
}  // namespace slipstream

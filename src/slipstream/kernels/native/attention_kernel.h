// Attention of one tile of queries, written once over a Simd type; included by one file for each instruction set.
#pragma once

#include <utility>

#include "attention_block.h"
#include "attention_write.h"
#include "exponential.h"

namespace slipstream {
namespace {

constexpr float kNothing = -1e30f;  // the maximum of no scores: below every real one, yet finite

// Maxima and sums of the weights of rows, and the weighted sums of their values [rows][stride]. `rows` counts the rows that
// the maxima and sums have room for, which is a multiple of kGroup.
struct Softmax {
  float *top, *total, *sums;
  Softmax(float* memory, int64_t rows) : top(memory), total(memory + rows), sums(memory + 2 * rows) {}
  // `padded` maxima and totals, and the sums of those rows that there are.
  void clear(int64_t padded, int64_t rows, int64_t stride) {
    for (int64_t r = 0; r < padded; ++r) top[r] = kNothing, total[r] = 0.0f;
    for (int64_t i = 0; i < rows * stride; ++i) sums[i] = 0.0f;
  }
};

template <class S, class T>
class TileKernel {
  static constexpr bool kScaled = BlockReader<S, T>::kScaled;

 public:
  TileKernel(const Attention& call, const AttentionTile& tile, const AttentionTile* next, Scratch scratch)
      : c_(call), t_(tile), next_(next), blocks_(call, tile.row, tile.kv_head, &scratch), stride_(round_up(call.size, kGroup)),
        shared_(call.heads / call.kv_heads), rows_(tile.queries * shared_), padded_(round_up(rows_, kGroup)),
        segment_(scratch.take(padded_ * (stride_ + 2)), padded_), whole_(scratch.take(padded_ * (stride_ + 2)), padded_) {
    q_ = scratch.take(rows_ * stride_);
    scores_ = scratch.take(rows_ * kBlock);
    keep_ = scratch.take(padded_);
    old_ = scratch.take(padded_);
    token_ = c_.starts[t_.row] + t_.first;
    position_ = first_position(t_);
    const bool even = c_.page_size % kGroup == 0 && c_.size % kGroup == 0;
    // Many rows read a block often enough to pay for widening it once; few read it straight from the cache.
    const bool few = rows_ <= 2 * S::tile_rows;
    direct_values_ = even && few;
    direct_keys_ = direct_values_ && c_.layout == CacheLayout::by_head;
  }

  void run() {
    const int64_t begin = first_key(t_), end = position_ + t_.queries;
    const bool single = c_.starts[t_.row + 1] - c_.starts[t_.row] == 1;
    if (single && t_.end_segment * kSegment >= end) write_token<S, T>(c_, blocks_.cache, t_.row, 0, t_.kv_head, q_);
    load_queries();
    for (int64_t segment = t_.first_segment; segment < t_.end_segment; ++segment) {
      segment_.clear(padded_, rows_, stride_);
      for (int64_t block = segment * kSegment; block < (segment + 1) * kSegment; block += kBlock) {
        const int64_t low = most(begin - block, 0), high = least(end - block, kBlock);
        if (low < high) attend_block(block, low, high, end);
      }
      if (t_.partial) {
        const float* from = segment_.top;
        for (int64_t i = 0; i < 2 * padded_ + rows_ * stride_; ++i) t_.partial[i] = from[i];
        return;
      }
      if (segment == t_.first_segment) {
        std::swap(segment_, whole_);
      } else {
        fold(segment_);
      }
    }
    write_output();
  }

  void merge(const float* partials, int64_t count) {
    const auto part = [&](int64_t i) { return Softmax(const_cast<float*>(partials) + i * padded_ * (stride_ + 2), padded_); };
    whole_ = part(0);  // the others are folded into it where it lies
    for (int64_t i = 1; i < count; ++i) fold(part(i));
    write_output();
  }

 private:
  void load_queries() {
    for (int64_t i = 0; i < t_.queries; ++i) {
      for (int64_t j = 0; j < shared_; ++j) {
        float* out = q_ + (i * shared_ + j) * stride_;
        const float* in = c_.q + (token_ + i) * c_.q_stride + (t_.kv_head * shared_ + j) * c_.size;
        prepare<S>(c_, c_.q_norm, token_ + i, c_.scale, in, out);
      }
    }
  }

  int64_t first_key(const AttentionTile& tile) const {
    return c_.window > 0 ? most(0, first_position(tile) - c_.window + 1) : 0;
  }

  int64_t first_position(const AttentionTile& tile) const {
    return c_.lengths[tile.row] - (c_.starts[tile.row + 1] - c_.starts[tile.row]) + tile.first;
  }

  // What this thread will read after the block at `start`: the next one, or the first of the next tile. A group's keys are too
  // few bytes for the processor's own prefetcher to see the next ones coming. Returns whether there is anything.
  bool look_ahead(int64_t start, int64_t end, const char** keys, const char** values) const {
    const AttentionTile* tile = &t_;
    start += kBlock;
    if (start >= least(end, t_.end_segment * kSegment)) {
      if (!next_) return false;
      tile = next_;
      start = most(first_key(*tile) / kBlock * kBlock, tile->first_segment * kSegment);
      end = first_position(*tile) + tile->queries;
    }
    for (int64_t group = 0; group < kBlock / kGroup; ++group) {
      const int64_t first = most(first_key(*tile) - start, 0) / kGroup, last = (end - 1 - start) / kGroup;
      const auto [page, in_page] = blocks_.place_of(tile->row, start, least(most(group, first), last));
      keys[group] = reinterpret_cast<const char*>(blocks_.cache.key(page, in_page, tile->kv_head));
      values[group] = reinterpret_cast<const char*>(blocks_.cache.value(page, in_page, tile->kv_head));
      if (kScaled) {
        __builtin_prefetch(blocks_.cache.k_scale(page, in_page, tile->kv_head));
        __builtin_prefetch(blocks_.cache.v_scale(page, in_page, tile->kv_head));
      }
    }
    return true;
  }

  void attend_block(int64_t start, int64_t low, int64_t high, int64_t end) {
    const int64_t first = low / kGroup, last = (high + kGroup - 1) / kGroup;
    const Block<float> wide = blocks_.widened();
    Block<T> narrow{};
    if (direct_values_) narrow = blocks_.direct_block(start, low, high);
    // Keys while scores are computed, values while they are mixed: so that requests to memory never stop.
    const char *ahead_keys[kBlock / kGroup], *ahead_values[kBlock / kGroup];
    const bool more = direct_keys_ && c_.page_size == kGroup && look_ahead(start, end, ahead_keys, ahead_values);
    if (kScaled) blocks_.load_scales(start, low, high);
    // Tokens of the block that a row sees. Later rows begin and end later.
    const auto begin_of = [&](int64_t row) {
      return c_.window > 0 ? most(low, position_ + row / shared_ + 1 - c_.window - start) : low;
    };
    const auto end_of = [&](int64_t row) { return least(high, position_ + row / shared_ + 1 - start); };
    const auto score = [&](const auto& block, const char* const* ahead) {
      for_row_tiles<S>(rows_, [&](auto height, int64_t row) {
        const int64_t seen = end_of(row + height.value - 1);
        if (seen <= low) return;
        score_rows<S, std::decay_t<decltype(*block.keys[0])>, height.value>(
            block, first, (seen + kGroup - 1) / kGroup, q_ + row * stride_, stride_, c_.size, scores_ + row * kBlock, ahead);
        ahead = nullptr;
      });
    };
    const auto mix = [&](const auto& block, const char* const* ahead) {
      for_row_tiles<S>(rows_, [&](auto height, int64_t row) {
        using V = std::decay_t<decltype(*block.values[0])>;
        const auto mix_some = [&](auto rows, int64_t first_row, int64_t from, int64_t to, const char* const* ahead) {
          mix_rows<S, V, rows.value>(block, from, to, scores_ + first_row * kBlock, keep_ + first_row,
                                     segment_.sums + first_row * stride_, stride_, ahead);
          for (int64_t r = first_row; r < first_row + rows.value; ++r) keep_[r] = 1.0f;  // once for each block
        };
        // What all rows of the tile see is mixed together. What only some see is mixed for each of them alone: an infinite
        // value of a token that a row does not see would make NaN of a weight of zero.
        const int64_t after = row + height.value, begin = begin_of(after - 1), end = end_of(row);
        for (int64_t r = row; r < after; ++r) {
          if (const int64_t to = least(begin, end_of(r)); begin_of(r) < to) mix_some(Height<1>(), r, begin_of(r), to, nullptr);
        }
        if (begin < end) {
          mix_some(height, row, begin, end, ahead);
          ahead = nullptr;
        }
        for (int64_t r = row; r < after; ++r) {
          if (const int64_t from = most(begin, end); from < end_of(r)) mix_some(Height<1>(), r, from, end_of(r), nullptr);
        }
      });
    };
    if (direct_keys_) {
      score(narrow, more ? ahead_keys : nullptr);
    } else {
      blocks_.widen_keys(start, low, high);
      score(wide, nullptr);
    }
    weigh(start, low, high, first * kGroup, last * kGroup);
    if (direct_values_) {
      mix(narrow, more ? ahead_values : nullptr);
    } else {
      blocks_.widen_values(start, low, high);
      mix(wide, nullptr);
    }
  }

  // Turns scores into weights: exp(score - maximum so far), 0 where a row may not look.
  void weigh(int64_t start, int64_t low, int64_t high, int64_t from, int64_t to) {
    using F = typename S::F;
    const float *key_scales = blocks_.key_scales(), *value_scales = blocks_.value_scales();
    const auto seen = [&](int64_t row, int64_t* begin, int64_t* end) {
      const int64_t at = position_ + row / shared_ - start;
      *begin = least(c_.window > 0 ? most(low, at - c_.window + 1) : low, to);
      *end = most(least(high, at + 1), *begin);
    };
    for (int64_t r = 0; r < rows_; ++r) {
      float* score = scores_ + r * kBlock;
      if (kScaled) {
        for (int64_t i = from; i < to; i += S::lanes) S::store(score + i, S::mul(S::load(score + i), S::load(key_scales + i)));
      }
      if (c_.soft_cap > 0) {
        const F cap = S::set1(c_.soft_cap), inverse = S::set1(1.0f / c_.soft_cap);
        for (int64_t i = from; i < to; i += S::lanes) {
          S::store(score + i, S::mul(cap, hyperbolic_tangent<S>(S::mul(S::load(score + i), inverse))));
        }
      }
      int64_t begin, end;
      seen(r, &begin, &end);
      for (int64_t i = from; i < begin; ++i) score[i] = kNothing;
      for (int64_t i = end; i < to; ++i) score[i] = kNothing;
      F top = S::set1(segment_.top[r]);
      for (int64_t i = from; i < to; i += S::lanes) top = S::max(top, S::load(score + i));
      old_[r] = segment_.top[r];
      segment_.top[r] = S::top(top);
    }
    for (int64_t r = 0; r < padded_; r += S::lanes) {
      if (r + S::lanes > rows_) {
        for (int64_t i = most(r, rows_); i < r + S::lanes; ++i) old_[i] = segment_.top[i] = kNothing;
      }
      S::store(keep_ + r, exponential<S>(S::sub(S::load(old_ + r), S::load(segment_.top + r))));
    }
    for (int64_t r = 0; r < rows_; ++r) {
      float* weight = scores_ + r * kBlock;
      const F top = S::set1(segment_.top[r]);
      for (int64_t i = from; i < to; i += S::lanes) {
        S::store(weight + i, exponential<S>(S::sub(S::load(weight + i), top)));
      }
      int64_t begin, end;
      seen(r, &begin, &end);
      for (int64_t i = from; i < begin; ++i) weight[i] = 0.0f;
      for (int64_t i = end; i < to; ++i) weight[i] = 0.0f;
      segment_.total[r] = segment_.total[r] * keep_[r] + sum_of(weight, from, to);
      if (kScaled) {
        for (int64_t i = from; i < to; i += S::lanes) S::store(weight + i, S::mul(S::load(weight + i), S::load(value_scales + i)));
      }
    }
  }

  // Lane by lane over the groups of kGroup, then across: groups of zeros more or less do not change a bit.
  static float sum_of(const float* weight, int64_t from, int64_t to) {
    typename S::F sums[kGroup / S::lanes];
    for (auto& sum : sums) sum = S::zero();
    for (int64_t i = from; i < to; i += kGroup) {
      for (int j = 0; j < kGroup / S::lanes; ++j) sums[j] = S::add(sums[j], S::load(weight + i + j * S::lanes));
    }
    for (int j = 1; j < kGroup / S::lanes; ++j) sums[0] = S::add(sums[0], sums[j]);
    return S::sum(sums[0]);
  }

  // Folds a segment into the whole.
  void fold(const Softmax& part) {
    using F = typename S::F;
    for (int64_t r = 0; r < padded_; r += S::lanes) {
      const F before = S::load(whole_.top + r), other = S::load(part.top + r), top = S::max(before, other);
      const F keep = exponential<S>(S::sub(before, top)), take = exponential<S>(S::sub(other, top));
      S::store(whole_.top + r, top);
      S::store(whole_.total + r, S::add(S::mul(S::load(whole_.total + r), keep), S::mul(S::load(part.total + r), take)));
      S::store(keep_ + r, keep);
      S::store(old_ + r, take);
    }
    for (int64_t r = 0; r < rows_; ++r) {
      const F keep = S::set1(keep_[r]), take = S::set1(old_[r]);
      for (int64_t d = 0; d < stride_; d += S::lanes) {
        float* to = whole_.sums + r * stride_ + d;
        S::store(to, S::add(S::mul(S::load(to), keep), S::mul(S::load(part.sums + r * stride_ + d), take)));
      }
    }
  }

  int64_t head_of(int64_t row) const { return t_.kv_head * shared_ + row % shared_; }

  // Counts the sinks in, after all keys. keep_ becomes what the sums are worth beside them.
  void count_sinks() const {
    using F = typename S::F;
    for (int64_t r = 0; r < padded_; ++r) old_[r] = r < rows_ ? c_.sinks[head_of(r)] : kNothing;
    for (int64_t r = 0; r < padded_; r += S::lanes) {
      const F before = S::load(whole_.top + r), sink = S::load(old_ + r), top = S::max(before, sink);
      const F keep = exponential<S>(S::sub(before, top)), take = exponential<S>(S::sub(sink, top));
      S::store(whole_.total + r, S::add(S::mul(S::load(whole_.total + r), keep), take));
      S::store(keep_ + r, keep);
    }
  }

  void write_output() const {
    if (c_.sinks) count_sinks();
    for (int64_t r = 0; r < rows_; ++r) {
      float* out = c_.out + ((token_ + r / shared_) * c_.heads + head_of(r)) * c_.size;
      const float share = (c_.sinks ? keep_[r] : 1.0f) / whole_.total[r];
      for (int64_t d = 0; d < c_.size; ++d) out[d] = whole_.sums[r * stride_ + d] * share;
    }
  }

  const Attention& c_;
  const AttentionTile& t_;
  const AttentionTile* const next_;
  const BlockReader<S, T> blocks_;
  const int64_t stride_, shared_, rows_, padded_;  // a row: one query of one head
  Softmax segment_, whole_;
  float *q_, *scores_, *keep_, *old_;
  int64_t token_, position_;  // of the first query: in the step, in its sequence
  bool direct_keys_, direct_values_;
};

// Calls body with a value of the type that the cache holds.
template <class Body>
inline void with_type(CacheType type, Body&& body) {
  switch (type) {
    case CacheType::f32: body(float{}); break;
    case CacheType::f16: body(Half{}); break;
    case CacheType::bf16: body(Brain{}); break;
    case CacheType::i8: body(int8_t{}); break;
  }
}

template <class S>
AttentionKernels kernels_of() {
  return {
      [](const Attention& c, int64_t row, int64_t first, int64_t end, float* scratch) {
        with_type(c.type, [&](auto kind) { write_tokens<S, decltype(kind)>(c, row, first, end, scratch); });
      },
      [](const Attention& c, const AttentionTile& tile, const AttentionTile* next, float* scratch) {
        with_type(c.type, [&](auto kind) { TileKernel<S, decltype(kind)>(c, tile, next, Scratch(scratch)).run(); });
      },
      [](const Attention& c, const AttentionTile& tile, const float* partials, int64_t count, float* scratch) {
        with_type(c.type, [&](auto kind) { TileKernel<S, decltype(kind)>(c, tile, nullptr, Scratch(scratch)).merge(partials, count); });
      },
  };
}

}  // namespace
}  // namespace slipstream

#include "attention.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "entry.h"
#include "pool.h"

namespace slipstream {
namespace {

constexpr int64_t kTileRows = 96;     // queries times heads: enough to pay for widening a block of keys once
constexpr int64_t kTileQueries = 32;  // more would waste work on keys that the first of them may not see
constexpr int64_t kTokensPerWrite = 16;
constexpr int64_t kSplitBelow = 8;  // tiles for each thread: with fewer, the threads would not finish together

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

int64_t queries_per_tile(const Attention& c) {
  return std::clamp<int64_t>(kTileRows / (c.heads / c.kv_heads), 1, kTileQueries);
}

// Memory that is kept for the next call, aligned to a cache line. What it holds is lost when it grows.
class Memory {
 public:
  float* floats(int64_t count) {
    if (count > held_) {
      held_ = 0;
      memory_.reset(new float[count + 16]);
      held_ = count;
    }
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    return reinterpret_cast<float*>((address + 63) & ~uintptr_t{63});
  }

 private:
  std::unique_ptr<float[]> memory_;
  int64_t held_ = 0;
};

float* thread_scratch(int64_t floats) {
  static thread_local Memory memory;
  return memory.floats(floats);
}

const char* check(const Attention& c) {
  if (c.heads < 1 || c.kv_heads < 1 || c.size < 1 || c.heads % c.kv_heads != 0) {
    return "the heads must be a multiple of the KV heads";
  }
  if (c.page_size < 1 || c.pages_per_row < 0) return "a page must hold a token";
  if (c.layer < 0 || c.layer >= c.layers) return "the cache has no such layer";
  if (c.cos && (c.pairs < 1 || 2 * c.pairs > c.size)) return "a head does not have as many pairs to rotate";
  if (c.type == CacheType::i8 && !(c.k_scale && c.v_scale)) return "a cache of i8 needs scales";
  if (c.window < 0 || c.soft_cap < 0) return "the window and the soft cap must not be negative";
  if (c.starts[0] != 0) return "starts must begin with 0";
  for (int64_t row = 0; row < c.rows; ++row) {
    const int64_t count = int64_t{c.starts[row + 1]} - c.starts[row], length = c.lengths[row];
    if (count < 0) return "starts must not fall";
    if (c.starts[row + 1] > c.tokens) return "starts has more tokens than there are";
    if (count == 0) continue;
    if (length < count) return "a row is shorter than its tokens of this step";
    const int64_t pages = (length + c.page_size - 1) / c.page_size;
    if (pages > c.pages_per_row) return "a row is longer than its page table";
    const int64_t seen = c.window > 0 ? std::max<int64_t>(0, length - count + 1 - c.window) / c.page_size : 0;
    for (int64_t i = seen; i < pages; ++i) {
      const int64_t page = c.page_table[row * c.pages_per_row + i];
      if (page < 0 || page >= c.pages) return "a page table names a page that the cache does not have";
    }
  }
  return nullptr;
}

const AttentionKernels& kernels_for(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx512vnni: return attention_kernels_avx512();
    case Isa::avx2: return attention_kernels_avx2();
#endif
    default: return attention_kernels_portable();
  }
}

struct Write {
  int64_t row, first, end;
};

// A tile that several threads compute, each some segments of its keys; the last to finish folds their results.
struct Split {
  AttentionTile tile;
  int64_t first_partial;  // floats into the partial results
};

// What a call is cut into. Every calling thread keeps one, for its memory.
class Plan {
 public:
  void make(const Attention& c) {
    writes.clear(), tiles.clear(), splits.clear();
    const int64_t queries = queries_per_tile(c);
    // Long chunks first, and of each the end first: the longest work must not be begun last.
    for (const bool chunks : {true, false}) {
      for (int64_t row = 0; row < c.rows; ++row) {
        const int64_t count = c.starts[row + 1] - c.starts[row];
        if (count == 0 || (count > 1) != chunks) continue;
        for (int64_t first = 0; chunks && first < count; first += kTokensPerWrite) {
          writes.push_back({row, first, std::min(count, first + kTokensPerWrite)});
        }
        for (int64_t first = (count - 1) / queries * queries; first >= 0; first -= queries) {
          for (int64_t head = 0; head < c.kv_heads; ++head) add(c, row, head, first, std::min(queries, count - first));
        }
      }
    }
    if (static_cast<int64_t>(tiles.size()) < kSplitBelow * threads() && threads() > 1) split(c);
  }

  // Notes that a part of a split is done; whether it was the last one.
  bool finished(int64_t split) { return left_[split].fetch_sub(1, std::memory_order_acq_rel) == 1; }

  std::vector<Write> writes;
  std::vector<AttentionTile> tiles;
  std::vector<Split> splits;

 private:
  void add(const Attention& c, int64_t row, int64_t head, int64_t first, int64_t queries) {
    const int64_t position = c.lengths[row] - (c.starts[row + 1] - c.starts[row]) + first;
    const int64_t begin = c.window > 0 ? std::max<int64_t>(0, position - c.window + 1) : 0, end = position + queries;
    tiles.push_back({row, head, first, queries, begin / kSegment, (end + kSegment - 1) / kSegment, nullptr, 0});
  }

  // One tile for each segment.
  void split(const Attention& c) {
    whole_.swap(tiles);
    tiles.clear();
    int64_t floats = 0;
    for (const AttentionTile& tile : whole_) {
      const int64_t segments = tile.end_segment - tile.first_segment;
      if (segments == 1) {
        tiles.push_back(tile);
        continue;
      }
      splits.push_back({tile, floats});
      floats += segments * partial_floats(c, tile.queries);
    }
    if (splits.empty()) return;
    if (splits.size() > counters_) {
      left_.reset(new std::atomic<int64_t>[splits.size()]);
      counters_ = splits.size();
    }
    float* partials = partials_.floats(floats);
    for (size_t i = 0; i < splits.size(); ++i) {
      AttentionTile& tile = splits[i].tile;
      tile.partial = partials + splits[i].first_partial;
      tile.split = static_cast<int64_t>(i);
      left_[i].store(tile.end_segment - tile.first_segment, std::memory_order_relaxed);
      const int64_t size = partial_floats(c, tile.queries);
      for (int64_t segment = tile.first_segment; segment < tile.end_segment; ++segment) {
        AttentionTile part = tile;
        part.first_segment = segment;
        part.end_segment = segment + 1;
        part.partial = tile.partial + (segment - tile.first_segment) * size;
        tiles.push_back(part);
      }
    }
  }

  std::vector<AttentionTile> whole_;
  std::unique_ptr<std::atomic<int64_t>[]> left_;  // parts of each split that are not done
  size_t counters_ = 0;
  Memory partials_;
};

}  // namespace

int64_t partial_floats(const Attention& c, int64_t queries) {
  return round_up(queries * (c.heads / c.kv_heads), kGroup) * (round_up(c.size, kGroup) + 2);
}

int64_t scratch_floats(const Attention& c, int64_t queries) {
  const int64_t rows = round_up(queries * (c.heads / c.kv_heads), kGroup), stride = round_up(c.size, kGroup);
  return rows * (stride + kBlock + 2) + 2 * partial_floats(c, queries) + 2 * (stride + 1) * kBlock + 8 * kGroup;
}

const char* attend(const Attention& c, Isa isa) {
  if (const char* wrong = check(c)) return wrong;
  const AttentionKernels& kernels = kernels_for(isa);
  static thread_local Plan own;
  Plan& plan = own;  // for the other threads, which would find their own
  plan.make(c);
  const int64_t floats = scratch_floats(c, queries_per_tile(c));
  const int64_t real = c.starts[c.rows], width = c.heads * c.size;
  std::fill(c.out + real * width, c.out + c.tokens * width, 0.0f);
  // Few tokens are less work than waking a helper.
  const int64_t writes = static_cast<int64_t>(plan.writes.size()), at_once = real <= kTokensPerWrite ? writes : 1;
  if (writes > 0) {
    parallel((writes + at_once - 1) / at_once, [&](int64_t i) {
      for (int64_t at = i * at_once; at < std::min(writes, (i + 1) * at_once); ++at) {
        const Write& w = plan.writes[at];
        kernels.write(c, w.row, w.first, w.end, thread_scratch(floats));
      }
    });
  }
  // The KV heads of one row lie side by side in its pages: one thread takes them all where there are rows enough.
  const int64_t tiles = static_cast<int64_t>(plan.tiles.size());
  const int64_t together = tiles >= kSplitBelow * threads() * c.kv_heads ? c.kv_heads : 1;
  const int64_t ahead = (threads() - 1) * together;
  parallel((tiles + together - 1) / together, [&](int64_t i) {
    float* scratch = thread_scratch(floats);
    const int64_t end = std::min(tiles, (i + 1) * together);
    for (int64_t at = i * together; at < end; ++at) {
      const int64_t next = at + 1 < end ? at + 1 : at + 1 + ahead;
      const AttentionTile& tile = plan.tiles[at];
      kernels.tile(c, tile, next < tiles ? &plan.tiles[next] : nullptr, scratch);
      if (tile.partial && plan.finished(tile.split)) {
        const AttentionTile& all = plan.splits[tile.split].tile;
        kernels.merge(c, all, all.partial, all.end_segment - all.first_segment, scratch);
      }
    }
  });
  return nullptr;
}

}  // namespace slipstream

// The same from C, for tests: the instruction set is the one in use. Returns null, or what is wrong.
SLIPSTREAM_ENTRY const char* slipstream_attend(const slipstream::Attention* call) {
  return slipstream::attend(*call, slipstream::isa());
}

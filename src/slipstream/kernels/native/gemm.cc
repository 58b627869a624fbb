#include "gemm.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <vector>

#include "entry.h"
#include "gemm_kernels.h"
#include "pool.h"

namespace slipstream {
namespace {

const Kernels& kernels() {
#if defined(__x86_64__)
  if (isa() == Isa::avx512vnni) return kAvx512Kernels;
  if (isa() == Isa::avx2) return kAvx2Kernels;
#endif
  return kPortableKernels;
}

void* required(Memory& memory, size_t bytes) {
  void* data = memory.at_least(bytes);
  if (!data) throw std::bad_alloc();
  return data;
}

// Bytes of prepared rows that one piece of work covers, at most: they stay in the second-level cache.
constexpr int64_t kRowBytes = 384 << 10;
// A piece of work should take at least this long; what bytes of weights and products of numbers take is a rough guess.
constexpr int64_t kLeastTime = 400, kBytesPerTime = 12, kProductsPerTime = 100;  // ns, 1 / ns
// Up to as many numbers every thread prepares all rows for itself: that is faster than waiting for others.
constexpr int64_t kPreparedAlone = 6144;

// What a call multiplies with, and how it finds the prepared rows.
struct Call {
  Call(const Input& input, bool exact) : input(input), exact(exact) {}
  void reads(const Weight& w) { (is_float(w.kind) ? plain : quantized) = true; }
  void writes(const float* y, int64_t out) {
    in_place |= y < input.x + input.rows * input.in && input.x < y + input.rows * out;
  }

  const Kernels& kernels = slipstream::kernels();
  const Input& input;
  const bool exact;
  bool quantized = false, plain = false;
  bool in_place = false;                // some result lies where the rows do
  uint64_t id = 0;                      // of this call alone
  const Activations* shared = nullptr;  // null: each thread prepares its own
};

// Room for prepared rows, in this thread's memory.
Activations make_room(const Call& call) {
  const Input& input = call.input;
  Activations a;
  a.rows = input.rows, a.in = input.in, a.groups = input.in / kGroup, a.exact = call.exact;
  a.panels = (a.rows + call.kernels.max_rows - 1) / call.kernels.max_rows, a.quantized = call.quantized, a.plain = call.plain;
  const size_t values = (a.rows * a.in + 63) / 64 * 64, groups = a.rows * a.groups;
  static thread_local Memory memory;
  const size_t bytes = (a.quantized ? groups * (a.number_bytes() + sizeof(Facts)) : 0) + (a.plain ? values * sizeof(float) : 0);
  auto* at = static_cast<uint8_t*>(required(memory, bytes + 64));
  const auto take = [&](size_t size) { return at += size, at - size; };
  if (a.quantized) {
    a.numbers = reinterpret_cast<int8_t*>(take(groups * a.number_bytes()));
    a.facts = reinterpret_cast<Facts*>(take(groups * sizeof(Facts)));
  }
  if (a.plain) a.values = reinterpret_cast<float*>(at);
  return a;
}

Activations prepare_together(const Call& call) {
  const Activations a = make_room(call);
  const int64_t step = std::max<int64_t>(4, (a.rows / (4 * threads()) + 3) / 4 * 4);
  parallel((a.rows + step - 1) / step, [&](int64_t chunk) {
    call.kernels.prepare(call.input, a, chunk * step, std::min(a.rows, (chunk + 1) * step));
  });
  return a;
}

const Activations& prepared(const Call& call) {
  if (call.shared) return *call.shared;
  static thread_local Activations own;
  static thread_local uint64_t id = 0;
  if (id != call.id) {
    id = 0;  // in case there is no memory
    own = make_room(call);
    call.kernels.prepare(call.input, own, 0, own.rows);
    id = call.id;
  }
  return own;
}

// Pieces of work: rounds of one for each thread, and each round most of what is left. So pieces are few, since each begins with
// a wait for memory, and the last ones small, so that all threads end together.
class Pieces {
 public:
  Pieces(int64_t units, int64_t least) {
    ends_.clear();
    const int64_t workers = threads();
    for (int64_t at = 0; at < units;) {
      const int64_t size = std::max(least, (units - at) * 3 / (4 * workers));
      for (int64_t i = 0; i < workers && at < units; i++) ends_.push_back(at = std::min(units, at + size));
    }
  }
  int64_t count() const { return static_cast<int64_t>(ends_.size()); }
  int64_t begin(int64_t piece) const { return piece ? ends_[piece - 1] : 0; }
  int64_t end(int64_t piece) const { return ends_[piece]; }

 private:
  static thread_local std::vector<int64_t> memory_;
  std::vector<int64_t>& ends_ = memory_;
};
thread_local std::vector<int64_t> Pieces::memory_;

// Inlined by force: GCC takes a function that only prefetches for one that does nothing, and drops its calls.
inline __attribute__((always_inline)) void fetch_lines(const uint8_t* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

// What is read of these panels before fetching ahead takes effect.
inline __attribute__((always_inline)) void fetch(const Weight& w, int64_t panel, int64_t panels) {
  panels = std::min(panels, w.panels - panel);
  if (is_float(w.kind)) return fetch_lines(w.panel(panel), std::min<int64_t>(kFetchAhead, panels * w.panel_bytes));
  const Format& f = format(w.kind);
  for (int64_t p = 0; p <= w.ahead_panels && p < panels; p++) {
    const uint8_t* from = w.panel(panel + p);
    const int64_t groups = p < w.ahead_panels ? w.groups : w.ahead_groups;
    fetch_lines(from, groups * f.low);
    fetch_lines(from + w.high, groups * f.high);
    fetch_lines(from + w.scales, (groups >> w.shared_bits) * f.scales);
  }
}

// Numbers the calls of all kinds: of two with one number, a thread would take the first one's rows for the second's.
std::atomic<uint64_t> calls{0};

// Prepares the rows and calls fn(rows, panel, left, first row panel, last row panel) for all of `panels` x the row panels, where
// `left` panels are still this thread's; begin(panel, left) before the panels of a piece.
template <class Begin, class F>
void for_panels(Call call, int64_t panels, size_t panel_bytes, Begin&& begin, F&& fn) {
  Activations together;
  if (call.input.rows * call.input.in <= kPreparedAlone && !call.in_place) {
    call.id = ++calls;
  } else {
    together = prepare_together(call);
    call.shared = &together;
  }
  const int64_t rows = call.input.rows, row_panels = (rows + call.kernels.max_rows - 1) / call.kernels.max_rows;
  const int64_t row_bytes = call.input.in * (call.plain ? sizeof(float) : call.exact ? 2 : 1);
  const int64_t blocks = std::min(row_panels, (rows * row_bytes + kRowBytes - 1) / kRowBytes);
  const int64_t products = rows / blocks * call.input.in * kPanel;
  const int64_t time = std::max(static_cast<int64_t>(panel_bytes) / kBytesPerTime, products / kProductsPerTime) + 1;
  const Pieces pieces(panels * blocks, kLeastTime / time + 1);
  std::atomic<bool> exhausted{false};  // chunks must not throw
  parallel(pieces.count(), [&](int64_t piece) {
    try {
      begin(pieces.begin(piece) % panels, pieces.end(piece) - pieces.begin(piece));
      const Activations& a = prepared(call);
      for (int64_t unit = pieces.begin(piece); unit < pieces.end(piece); unit++) {
        const int64_t block = unit / panels;
        fn(a, unit % panels, pieces.end(piece) - unit, row_panels * block / blocks, row_panels * (block + 1) / blocks);
      }
    } catch (const std::bad_alloc&) {
      exhausted = true;
    }
  });
  if (exhausted) throw std::bad_alloc();
}

void* scratch_for(const Weight& w, size_t more = 0) {
  static thread_local Memory memory;
  return required(memory, unpack_bytes(w) + more + 64);
}

}  // namespace

void multiply(const Input& input, bool exact, const Product* products, int count) {
  if (!input.rows || !count) return;
  Call call(input, exact);
  int64_t panels = 0;
  for (int i = 0; i < count; i++) {
    call.reads(products[i].weight);
    call.writes(products[i].y, products[i].weight.out);
    panels += products[i].weight.panels;
  }
  const auto find = [&](int64_t* panel) {
    const Product* p = products;
    while (*panel >= p->weight.panels) *panel -= (p++)->weight.panels;
    return p;
  };
  for_panels(
      call, panels, products[0].weight.panel_bytes,
      [&](int64_t panel, int64_t left) {
        const Product* p = find(&panel);
        fetch(p->weight, panel, left);
      },
      [&](const Activations& a, int64_t panel, int64_t left, int64_t first, int64_t last) {
        const Product* p = find(&panel);
        if (!panel) fetch(p->weight, 0, left);
        const int64_t stop = std::min(p->weight.panels, panel + left);
        const int64_t column = panel * kPanel;
        const Output output{p->y + column, p->residual ? p->residual + column : nullptr, 0, p->weight.out,
                            p->weight.valid(panel)};
        call.kernels.multiply(p->weight, panel, stop, a, first, last, scratch_for(p->weight), output);
      });
}

void multiply_gated(const Input& input, bool exact, Gate gate, const Weight& g, const Weight& u, float* y) {
  if (!input.rows) return;
  Call call(input, exact);
  call.reads(g), call.reads(u), call.writes(y, g.out);
  const auto begin = [&](int64_t panel, int64_t left) { fetch(g, panel, left), fetch(u, panel, left); };
  const auto each = [&](const Activations& a, int64_t panel, int64_t left, int64_t first, int64_t last) {
    const int64_t stop = std::min(g.panels, panel + left);
    const int64_t row = a.panel(first).first, end = last == a.panels ? a.rows : a.panel(last).first;
    const size_t tile = (end - row) * kPanel * sizeof(float), unpack = std::max(unpack_bytes(g), unpack_bytes(u));
    auto* scratch = static_cast<uint8_t*>(scratch_for(g.groups > u.groups ? g : u, 2 * tile));
    auto* opened = reinterpret_cast<float*>(scratch + (unpack + 63) / 64 * 64);
    auto* right = opened + (end - row) * kPanel;
    call.kernels.multiply(g, panel, stop, a, first, last, scratch, {opened, nullptr, row, kPanel, kPanel});
    call.kernels.multiply(u, panel, stop, a, first, last, scratch, {right, nullptr, row, kPanel, kPanel});
    call.kernels.gate(gate, opened, right, (end - row) * kPanel);
    for (int64_t r = row; r < end; r++)
      std::memcpy(y + r * g.out + panel * kPanel, opened + (r - row) * kPanel, g.valid(panel) * sizeof(float));
  };
  for_panels(call, g.panels, g.panel_bytes + u.panel_bytes, begin, each);
}

void multiply_mlp(const Input& input, bool exact, Gate gate, const Weight& g, const Weight& u, const Product& down) {
  if (!input.rows) return;
  static thread_local Memory memory;
  auto* hidden = static_cast<float*>(required(memory, input.rows * g.out * sizeof(float)));
  multiply_gated(input, exact, gate, g, u, hidden);
  multiply({hidden, input.rows, g.out}, exact, &down, 1);
}

void read_rows(const Weight& w, const int32_t* ids, int64_t count, float scale, float* y) {
  const int64_t step = 8;
  parallel((count + step - 1) / step, [&](int64_t chunk) {
    for (int64_t i = chunk * step; i < std::min(count, (chunk + 1) * step); i++) {
      float* to = y + i * w.in;
      if (ids[i] < 0 || ids[i] >= w.out) {
        std::memset(to, 0, w.in * sizeof(float));
        continue;
      }
      decode_row(w, ids[i], to);
      if (scale != 1.0f)
        for (int64_t j = 0; j < w.in; j++) to[j] *= scale;
    }
  });
}

}  // namespace slipstream

// ---- plain entries, for tests and measurements. 0: done; 1: no memory.

using namespace slipstream;

namespace {
template <class F>
int guarded(F&& fn) {
  try {
    fn();
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
}  // namespace

SLIPSTREAM_ENTRY int64_t slipstream_packed_bytes(int kind, int64_t out, int64_t in) {
  return static_cast<int64_t>(packed_weight(static_cast<Kind>(kind), out, in, nullptr).bytes());
}

SLIPSTREAM_ENTRY int slipstream_gemm(int kind, int64_t out, int64_t in, const uint8_t* packed, const float* x, int64_t rows,
                                     int exact, const float* norm, float eps, float norm_offset, const float* residual,
                                     float* y) {
  return guarded([&] {
    const Product product{packed_weight(static_cast<Kind>(kind), out, in, packed), y, residual};
    multiply({x, rows, in, norm, eps, norm_offset}, exact, &product, 1);
  });
}

SLIPSTREAM_ENTRY int slipstream_gated(int gate_kind, int up_kind, int64_t out, int64_t in, const uint8_t* gate,
                                      const uint8_t* up, const float* x, int64_t rows, int exact, const float* norm,
                                      float eps, float norm_offset, int activation, float* y) {
  return guarded([&] {
    multiply_gated({x, rows, in, norm, eps, norm_offset}, exact, static_cast<Gate>(activation),
                   packed_weight(static_cast<Kind>(gate_kind), out, in, gate),
                   packed_weight(static_cast<Kind>(up_kind), out, in, up), y);
  });
}

SLIPSTREAM_ENTRY int slipstream_rows(int kind, int64_t out, int64_t in, const uint8_t* packed, const int32_t* ids,
                                     int64_t count, float scale, float* y) {
  return guarded([&] { read_rows(packed_weight(static_cast<Kind>(kind), out, in, packed), ids, count, scale, y); });
}

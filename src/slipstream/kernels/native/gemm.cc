#include "gemm.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>

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

// Row panels that one piece of work covers, at most: their activations stay in the second-level cache.
constexpr int64_t kRowPanels = 16;
// Bytes of weights times rows that make a piece of work worth handing out.
constexpr int64_t kLeastWork = 24 << 10;

// Room for prepared rows, in the calling thread's memory.
Activations make_room(const Input& input, bool exact, bool quantized, bool plain, int max_rows) {
  Activations a;
  a.rows = input.rows, a.in = input.in, a.groups = input.in / kGroup, a.exact = exact;
  a.panels = (a.rows + max_rows - 1) / max_rows, a.quantized = quantized, a.plain = plain;
  const size_t numbers = (a.rows * a.in + 63) / 64 * 64, groups = (a.rows * a.groups + 15) / 16 * 16;
  static thread_local Memory memory;
  const size_t bytes = (quantized ? 2 * numbers + 16 * groups : 0) + (plain ? 4 * numbers : 0);
  auto* at = static_cast<uint8_t*>(required(memory, bytes + 64));
  const auto take = [&](size_t size) { return at += size, at - size; };
  if (quantized) {
    a.high = reinterpret_cast<int8_t*>(take(numbers));
    a.low = reinterpret_cast<int8_t*>(take(numbers));
    a.scale = reinterpret_cast<float*>(take(4 * groups));
    a.scaled_sum = reinterpret_cast<float*>(take(4 * groups));
    a.minus_sum = reinterpret_cast<int32_t*>(take(4 * groups));
    a.minus_first = reinterpret_cast<int32_t*>(take(4 * groups));
  }
  if (plain) a.values = reinterpret_cast<float*>(take(4 * numbers));
  return a;
}

Activations prepare(const Kernels& k, const Input& input, bool exact, bool quantized, bool plain) {
  const Activations a = make_room(input, exact, quantized, plain, k.max_rows);
  // A few rows are one chunk: that is cheaper than waking the helpers.
  const int64_t step = std::max<int64_t>(4, input.rows / (4 * threads()));
  parallel((input.rows + step - 1) / step, [&](int64_t chunk) {
    const int64_t last = std::min(input.rows, (chunk + 1) * step);
    for (int64_t row = chunk * step; row < last; row++) k.prepare(input, a, row);
  });
  return a;
}

// Calls fn(panel, first row panel, last row panel) for all of `panels` x the row panels, in pieces of fair size.
template <class F>
void for_panels(int64_t panels, size_t panel_bytes, const Activations& a, F&& fn) {
  const int64_t blocks = (a.panels + kRowPanels - 1) / kRowPanels;
  const int64_t least = kLeastWork / static_cast<int64_t>(panel_bytes * std::min<int64_t>(a.rows, 64)) + 1;
  const int64_t step = std::max(least, panels * blocks / (16 * threads()));
  const int64_t pieces = (panels + step - 1) / step;
  std::atomic<bool> exhausted{false};  // chunks must not throw
  parallel(pieces * blocks, [&](int64_t chunk) {
    const int64_t first = chunk / pieces * kRowPanels, last = std::min(a.panels, first + kRowPanels);
    const int64_t begin = chunk % pieces * step, end = std::min(panels, begin + step);
    try {
      for (int64_t panel = begin; panel < end; panel++) fn(panel, first, last);
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
  const Kernels& k = kernels();
  bool quantized = false, plain = false;
  int64_t panels = 0;
  for (int i = 0; i < count; i++) {
    (is_float(products[i].weight.kind) ? plain : quantized) = true;
    panels += products[i].weight.panels;
  }
  const Activations a = prepare(k, input, exact, quantized, plain);
  for_panels(panels, products[0].weight.panel_bytes, a, [&](int64_t panel, int64_t first, int64_t last) {
    const Product* p = products;
    while (panel >= p->weight.panels) panel -= (p++)->weight.panels;
    const int64_t column = panel * kPanel;
    const Output output{p->y + column, p->residual ? p->residual + column : nullptr, 0, p->weight.out,
                        p->weight.valid(panel)};
    k.multiply(p->weight, panel, a, first, last, scratch_for(p->weight), output);
  });
}

void multiply_gated(const Input& input, bool exact, Gate gate, const Weight& g, const Weight& u, float* y) {
  if (!input.rows) return;
  const Kernels& k = kernels();
  const bool plain = is_float(g.kind) || is_float(u.kind), quantized = !is_float(g.kind) || !is_float(u.kind);
  const Activations a = prepare(k, input, exact, quantized, plain);
  for_panels(g.panels, g.panel_bytes + u.panel_bytes, a, [&](int64_t panel, int64_t first, int64_t last) {
    const int64_t row = a.panel(first).first, end = last == a.panels ? a.rows : a.panel(last).first;
    const size_t tile = (end - row) * kPanel * sizeof(float), unpack = std::max(unpack_bytes(g), unpack_bytes(u));
    auto* scratch = static_cast<uint8_t*>(scratch_for(g.groups > u.groups ? g : u, 2 * tile));
    auto* left = reinterpret_cast<float*>(scratch + (unpack + 63) / 64 * 64);
    auto* right = left + (end - row) * kPanel;
    k.multiply(g, panel, a, first, last, scratch, {left, nullptr, row, kPanel, kPanel});
    k.multiply(u, panel, a, first, last, scratch, {right, nullptr, row, kPanel, kPanel});
    k.gate(gate, left, right, (end - row) * kPanel);
    for (int64_t r = row; r < end; r++)
      std::memcpy(y + r * g.out + panel * kPanel, left + (r - row) * kPanel, g.valid(panel) * sizeof(float));
  });
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

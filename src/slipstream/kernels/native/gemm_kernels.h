// What an instruction set provides to gemm.cc, and the memory that they share.
#pragma once

#include <cstdlib>
#include <memory>

#include "gemm.h"
#include "isa.h"

namespace slipstream {

// Aligned memory that grows and is never cleared.
class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { std::free(data_); }

  // At least this many bytes, aligned to a cache line; what was there may be lost. Null if there is no memory.
  void* at_least(size_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = (bytes + bytes / 4 + 4095) / 4096 * 4096;
      data_ = std::aligned_alloc(64, size_);
      if (!data_) size_ = 0;
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// What belongs to a group of a row: x is about scale * q.
struct Facts {
  float scale, scaled_sum;          // scaled_sum = scale * sum(q)
  int32_t minus_sum, minus_first;   // -sum(q), and of inputs 0-15 alone
};

// Rows ready to be multiplied. They lie in panels of at most `max_rows` rows, of sizes as equal as can be.
struct Activations {
  int64_t rows = 0, in = 0, groups = 0, panels = 0;
  bool exact = false, quantized = false, plain = false;
  // Of the panel that starts at row r0 and has R rows, from element r0 * groups or r0 * in on:
  int8_t* numbers = nullptr;  // [groups][R][number_bytes()]: 32 bytes `high`, then where exact 32 `low`; q = 256 * high + low
  Facts* facts = nullptr;     // [groups][R]
  float* values = nullptr;    // [in][R], for float weights

  int number_bytes() const { return exact ? 2 * kGroup : kGroup; }

  struct Panel {
    int64_t first;
    int rows;
  };
  Panel panel(int64_t p) const {
    const int64_t size = rows / panels, larger = rows % panels;
    return {p * size + (p < larger ? p : larger), static_cast<int>(size + (p < larger))};
  }
  Panel panel_of(int64_t row) const {
    const int64_t size = rows / panels, larger = rows % panels;
    return panel(row < larger * (size + 1) ? row / (size + 1) : larger + (row - larger * (size + 1)) / size);
  }
};

// Where a panel of 16 outputs goes: column 0 of row r is element (r - row) * stride.
struct Output {
  float* y;
  const float* residual;  // null, or added
  int64_t row, stride;
  int valid;  // columns that exist
};

struct Kernels {
  int max_rows;
  // Norm and quantize rows [first, last).
  void (*prepare)(const Input& input, const Activations& to, int64_t first, int64_t last);
  // Multiply row panels [first, last) with one panel of a weight. `scratch` has unpack_bytes(w). The panels from `stop` on are
  // not this thread's: it does not fetch them ahead.
  void (*multiply)(const Weight& w, int64_t panel, int64_t stop, const Activations& a, int64_t first, int64_t last, void* scratch,
                   const Output& output);
  // g[i] = gate(g[i]) * u[i]; n is a multiple of 16.
  void (*gate)(Gate gate, float* g, const float* u, int64_t n);
};

inline size_t unpack_bytes(const Weight& w) { return w.groups * kUnpackedGroupBytes; }

// Each 16-bit q as two 8-bit numbers. -128 becomes -127, one step of 32512 off: then a product of two bytes with any
// weight fits 16 bits on machines that multiply so.
constexpr int kExactTop = 32512, kFastTop = 127;
// Below this a group counts as zero: its inverse would not be finite.
constexpr float kSmallest = 1e-30f;

extern const Kernels kPortableKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels, kAvx512Kernels;
#endif

}  // namespace slipstream

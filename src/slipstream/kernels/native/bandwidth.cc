// For measurements: how fast products are, and the ceiling that they are compared with, which is how fast memory can be read
// by as many threads.
#include <cstdint>
#include <cstring>
#include <new>

#include "entry.h"
#include "gemm.h"
#include "pool.h"

// Reads `bytes` (a multiple of 1 MiB) once with the pool's threads; the result depends on all of them.
SLIPSTREAM_ENTRY uint64_t slipstream_read_all(const uint8_t* data, int64_t bytes) {
  constexpr int64_t chunk_bytes = 1 << 20;
  uint64_t total = 0;
  slipstream::parallel(bytes / chunk_bytes, [&](int64_t chunk) {
    uint64_t sums[16] = {};
    const uint8_t* at = data + chunk * chunk_bytes;
    for (int64_t i = 0; i < chunk_bytes; i += 128) {
      uint64_t words[16];
      std::memcpy(words, at + i, 128);
      __builtin_prefetch(at + i + 8192, 0, 2);  // into the second-level cache: that is the fastest
      __builtin_prefetch(at + i + 8256, 0, 2);
      for (int k = 0; k < 16; k++) sums[k] ^= words[k];
    }
    uint64_t sum = 0;
    for (const uint64_t s : sums) sum ^= s;
    __atomic_fetch_xor(&total, sum, __ATOMIC_RELAXED);
  });
  return total;
}

// x [rows, in] times each of `count` weights that lie one after another; y [rows, out] is overwritten by each. 0: done; 1: no
// memory. As in a model, one product follows the other without a way through Python between them.
SLIPSTREAM_ENTRY int slipstream_gemm_each(int kind, int64_t out, int64_t in, const uint8_t* packed, int64_t count, const float* x,
                                          int64_t rows, int exact, float* y) {
  try {
    for (int64_t i = 0; i < count; i++) {
      slipstream::Weight w = slipstream::packed_weight(static_cast<slipstream::Kind>(kind), out, in, packed);
      w.data += i * w.bytes();
      const slipstream::Product product{w, y, nullptr};
      slipstream::multiply({x, rows, in}, exact != 0, &product, 1);
    }
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

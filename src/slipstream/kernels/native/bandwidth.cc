// The ceiling that products are compared with: how fast memory can be read by as many threads.
#include <cstdint>
#include <cstring>

#include "entry.h"
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

// The most that a processor can multiply: what products are compared with, measured in the same run.
#pragma once

#include <cstdint>

#include "isa.h"

namespace slipstream {

// Multiplies numbers in registers `rounds` times, on the calling thread, as the products of an instruction set do: bytes summed
// in 32 bits (integers), or float32. Returns the operations done, two for each product.
struct Peak {
  int64_t (*integers)(int64_t rounds);
  int64_t (*floats)(int64_t rounds);
};

extern const Peak kPortablePeak;
#if defined(__x86_64__)
extern const Peak kAvx2Peak, kAvx512Peak;
#endif

}  // namespace slipstream

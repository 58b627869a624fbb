// Faults planted on purpose, compiled into sanitized builds only: each proves that a sanitizer is really watching.
#include <cstdint>

#include "entry.h"

// Reads the number behind the last of data[0 .. count - 1].
SLIPSTREAM_ENTRY float slipstream_planted_overrun(const float* data, int64_t count) { return data[count]; }

// Shifts a 1 out of 32 bits for a count of 32 or more: undefined.
SLIPSTREAM_ENTRY int32_t slipstream_planted_shift(int32_t count) { return static_cast<int32_t>(1) << count; }

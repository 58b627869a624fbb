// What follows a product, row by row: an RMS norm over the row, then the residual.
#pragma once

#include <cstdint>

namespace slipstream {

struct Finish {
  const float* norm = nullptr;      // [width], or null: no norm
  float eps = 0, offset = 0;        // the norm's weight is norm + offset
  const float* residual = nullptr;  // [rows, width] to be added, or null; may be y itself

  bool needed() const { return norm != nullptr; }
};

// y [rows, width] = residual + y / sqrt(mean(y^2) + eps) * (norm + offset), each row by itself.
void finish_rows(const Finish& finish, float* y, int64_t rows, int64_t width);

}  // namespace slipstream

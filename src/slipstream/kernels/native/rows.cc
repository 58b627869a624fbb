#include "rows.h"

#include <algorithm>
#include <cmath>

#include "pool.h"

namespace slipstream {
namespace {

constexpr int kLanes = 16;       // sums side by side, which the compiler keeps in vectors; their number is part of the result
constexpr int64_t kRowStep = 8;  // fewer rows than this are done before a helper is awake

void finish_row(const Finish& finish, float* y, const float* residual, int64_t width) {
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes)
    for (int j = 0; j < kLanes; ++j) sums[j] += y[i + j] * y[i + j];
  for (; i < width; ++i) sums[0] += y[i] * y[i];
  float total = 0.0f;
  for (const float sum : sums) total += sum;
  const float factor = 1.0f / std::sqrt(total / static_cast<float>(width) + finish.eps);
  for (i = 0; i < width; ++i) {
    const float value = y[i] * factor * (finish.norm[i] + finish.offset);
    y[i] = residual ? residual[i] + value : value;
  }
}

}  // namespace

void finish_rows(const Finish& finish, float* y, int64_t rows, int64_t width) {
  parallel((rows + kRowStep - 1) / kRowStep, [&](int64_t chunk) {
    for (int64_t row = chunk * kRowStep; row < std::min(rows, (chunk + 1) * kRowStep); ++row)
      finish_row(finish, y + row * width, finish.residual ? finish.residual + row * width : nullptr, width);
  });
}

}  // namespace slipstream

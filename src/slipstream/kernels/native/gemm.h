// Products of float32 rows with packed weights.
//
// Activations are quantized by groups of 32 inputs: to 8 bits (fast), or to 16 bits that are multiplied in two passes of 8
// (exact). A group's product is summed in integers; groups are then added in float32, first to last. Nothing in this order
// depends on how many rows there are or which thread does them, so a row's result is the same, bit for bit, in any batch.
// With float weights the inputs are added one by one, first to last, in float32.
#pragma once

#include "packed.h"

namespace slipstream {

enum class Gate : int { silu, gelu_tanh };

// Rows [rows, in] with, where `norm` is not null, an RMS norm over each: x / sqrt(mean(x^2) + eps) * (norm + norm_offset).
struct Input {
  const float* x = nullptr;
  int64_t rows = 0, in = 0;
  const float* norm = nullptr;
  float eps = 0, norm_offset = 0;
};

struct Product {
  Weight weight;
  float* y = nullptr;               // [rows, out]
  const float* residual = nullptr;  // [rows, out] added to the product, or null; may be y itself
};

// Every product of the same input.
void multiply(const Input& input, bool exact, const Product* products, int count);

// y [rows, out] = gate(x g) * (x u).
void multiply_gated(const Input& input, bool exact, Gate gate, const Weight& g, const Weight& u, float* y);

// down.y = down.residual + (gate(x g) * (x u)) down: a whole gated layer.
void multiply_mlp(const Input& input, bool exact, Gate gate, const Weight& g, const Weight& u, const Product& down);

// y [count, in] = the rows `ids` of a weight, times `scale`. An id out of range gives a row of zeros.
void read_rows(const Weight& w, const int32_t* ids, int64_t count, float scale, float* y);

}  // namespace slipstream

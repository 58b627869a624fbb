// The two parts of the AVX-512 products: gemm_rows_avx512.cc prepares activations, gemm_avx512.cc multiplies.
#pragma once

#include "gemm_kernels.h"

namespace slipstream {

void prepare_avx512(const Input& input, const Activations& to, int64_t first, int64_t last);
void gate_avx512(Gate gate, float* g, const float* u, int64_t n);

}  // namespace slipstream

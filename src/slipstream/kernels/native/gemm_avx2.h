// The two parts of the AVX2 products: gemm_rows_avx2.cc prepares activations, gemm_avx2.cc multiplies.
#pragma once

#include "gemm_kernels.h"

namespace slipstream {

void prepare_avx2(const Input& input, const Activations& to, int64_t first, int64_t last);
void gate_avx2(Gate gate, float* g, const float* u, int64_t n);

}  // namespace slipstream

#include "simd_avx512.h"

#include "attention_kernel.h"

namespace slipstream {

const AttentionKernels& attention_kernels_avx512() {
  static const AttentionKernels kernels = kernels_of<Simd>();
  return kernels;
}

}  // namespace slipstream

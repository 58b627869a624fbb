#include "simd_avx2.h"

#include "attention_kernel.h"

namespace slipstream {

const AttentionKernels& attention_kernels_avx2() {
  static const AttentionKernels kernels = kernels_of<Simd>();
  return kernels;
}

}  // namespace slipstream

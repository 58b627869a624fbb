#include "simd_portable.h"

#include "attention_kernel.h"

namespace slipstream {

const AttentionKernels& attention_kernels_portable() {
  static const AttentionKernels kernels = kernels_of<Simd>();
  return kernels;
}

}  // namespace slipstream

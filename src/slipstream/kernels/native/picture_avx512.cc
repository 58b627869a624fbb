#include "simd_avx512.h"

#include "picture_kernel.h"

namespace slipstream {

const PictureKernels& picture_kernels_avx512() {
  static const PictureKernels kernels = picture_kernels_of<Simd>();
  return kernels;
}

}  // namespace slipstream

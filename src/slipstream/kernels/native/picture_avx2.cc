#include "simd_avx2.h"

#include "picture_kernel.h"

namespace slipstream {

const PictureKernels& picture_kernels_avx2() {
  static const PictureKernels kernels = picture_kernels_of<Simd>();
  return kernels;
}

}  // namespace slipstream

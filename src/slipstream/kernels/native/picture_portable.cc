#include "simd_portable.h"

#include "picture_kernel.h"

namespace slipstream {

const PictureKernels& picture_kernels_portable() {
  static const PictureKernels kernels = picture_kernels_of<Simd>();
  return kernels;
}

}  // namespace slipstream

#include "sample_kernel.h"

namespace slipstream {

const Draw kAvx2Draw = draw_row;

}  // namespace slipstream

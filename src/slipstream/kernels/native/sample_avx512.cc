#include "sample_kernel.h"

namespace slipstream {

const Draw kAvx512Draw = draw_row;

}  // namespace slipstream

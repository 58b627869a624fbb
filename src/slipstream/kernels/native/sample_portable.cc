#include "sample_kernel.h"

namespace slipstream {

const Draw kPortableDraw = draw_row;

}  // namespace slipstream

// XLA's handler that takes one array of numbers apart. Operand: i32[n]. Results: i32 arrays of any shapes, with n numbers in all, in
// the order of the operand. As one operation it comes before all that needs its results. Slices would be many that can run at once,
// for which XLA wakes other threads; that takes a hundred times as long as the copies.
#include <cstdint>
#include <cstring>

#include "entry.h"
#include "xla/ffi/api/ffi.h"

namespace slipstream {
namespace {

namespace ffi = xla::ffi;

ffi::Error split(ffi::BufferR1<ffi::S32> whole, ffi::RemainingRets parts) {
  const int32_t* from = whole.typed_data();
  size_t left = whole.element_count();
  for (size_t i = 0; i < parts.size(); ++i) {
    auto part = parts.get<ffi::Buffer<ffi::S32>>(i);
    if (!part) return part.error();
    const size_t count = (*part)->element_count();
    if (count > left) break;
    if (count > 0) std::memcpy((*part)->typed_data(), from, count * sizeof(int32_t));
    from += count, left -= count;
    if (i + 1 == parts.size() && left == 0) return ffi::Error::Success();
  }
  return ffi::Error::InvalidArgument("slipstream split: the results must have as many numbers as the operand");
}

}  // namespace
}  // namespace slipstream

SLIPSTREAM_ENTRY XLA_FFI_Error* slipstream_ffi_split(XLA_FFI_CallFrame* frame);

XLA_FFI_DEFINE_HANDLER_SYMBOL(slipstream_ffi_split, slipstream::split,
                              xla::ffi::Ffi::Bind().Arg<xla::ffi::BufferR1<xla::ffi::S32>>().RemainingRets());

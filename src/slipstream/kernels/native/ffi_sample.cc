// XLA's handler of drawing. Operands: logits f32[s, v], count i32[] (rows that are real: the others give 0), temperature, top_p,
// min_p f32[s], top_k i32[s], key u32[s, 2]. Result: i32[s].
#include <algorithm>
#include <new>
#include <vector>

#include "entry.h"
#include "sample.h"
#include "trace.h"
#include "xla/ffi/api/ffi.h"

namespace slipstream {
namespace {

namespace ffi = xla::ffi;
using Floats = ffi::BufferR1<ffi::F32>;

ffi::Error sampling(ffi::BufferR2<ffi::F32> logits, ffi::BufferR0<ffi::S32> count, Floats temperature, Floats top_p, Floats min_p,
                    ffi::BufferR1<ffi::S32> top_k, ffi::BufferR2<ffi::U32> key, ffi::Result<ffi::BufferR1<ffi::S32>> tokens) {
  Traced trace;
  const int64_t rows = logits.dimensions()[0], vocab = logits.dimensions()[1];
  const auto fits = [rows](const auto& buffer) { return buffer.dimensions()[0] == rows; };
  if (!fits(temperature) || !fits(top_p) || !fits(min_p) || !fits(top_k) || !fits(key) || !fits(*tokens) ||
      key.dimensions()[1] != 2) {
    return ffi::Error::InvalidArgument("slipstream sampling: logits [s, v], key [s, 2] and the others [s] must agree");
  }
  const int64_t real = std::clamp<int64_t>(*count.typed_data(), 0, rows);
  int32_t* to = tokens->typed_data();
  std::fill(to + real, to + rows, 0);
  try {
    std::vector<Wish> wishes(real);
    for (int64_t i = 0; i < real; ++i) {
      const uint32_t* words = key.typed_data() + 2 * i;
      wishes[i] = {temperature.typed_data()[i], top_p.typed_data()[i], min_p.typed_data()[i], top_k.typed_data()[i],
                   {words[0], words[1]}};
    }
    sample(logits.typed_data(), real, vocab, wishes.data(), to);
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "slipstream: no memory to draw tokens");
  }
  trace.call = {Part::sampling, 0, vocab, 1, real, real * vocab * static_cast<int64_t>(sizeof(float)), 0, 0};
  return ffi::Error::Success();
}

}  // namespace
}  // namespace slipstream

SLIPSTREAM_ENTRY XLA_FFI_Error* slipstream_ffi_sample(XLA_FFI_CallFrame* frame);

XLA_FFI_DEFINE_HANDLER_SYMBOL(slipstream_ffi_sample, slipstream::sampling,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::BufferR2<xla::ffi::F32>>()
                                  .Arg<xla::ffi::BufferR0<xla::ffi::S32>>()
                                  .Arg<slipstream::Floats>()
                                  .Arg<slipstream::Floats>()
                                  .Arg<slipstream::Floats>()
                                  .Arg<xla::ffi::BufferR1<xla::ffi::S32>>()
                                  .Arg<xla::ffi::BufferR2<xla::ffi::U32>>()
                                  .Ret<xla::ffi::BufferR1<xla::ffi::S32>>());

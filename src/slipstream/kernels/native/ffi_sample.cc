// XLA's handler of drawing. Operands: logits f32[s, v], count i32[] (rows that are real: the others give 0), slot i32[s] (which of
// the n wishes is a row's), position i32[s]; the wishes: temperature, top_p, min_p f32[n], top_k i32[n], seed u32[n, 2], high word
// first. Result: i32[s].
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
using Numbers = ffi::BufferR1<ffi::S32>;

ffi::Error sampling(ffi::BufferR2<ffi::F32> logits, ffi::BufferR0<ffi::S32> count, Numbers slot, Numbers position,
                    Floats temperature, Floats top_p, Floats min_p, Numbers top_k, ffi::BufferR2<ffi::U32> seed,
                    ffi::Result<Numbers> tokens) {
  Traced trace;
  const int64_t rows = logits.dimensions()[0], vocab = logits.dimensions()[1];
  const int64_t slots = temperature.dimensions()[0];
  const auto fits = [](const auto& buffer, int64_t size) { return buffer.dimensions()[0] == size; };
  if (!fits(slot, rows) || !fits(position, rows) || !fits(*tokens, rows) || !fits(top_p, slots) || !fits(min_p, slots) ||
      !fits(top_k, slots) || !fits(seed, slots) || seed.dimensions()[1] != 2) {
    return ffi::Error::InvalidArgument("slipstream sampling: logits [s, v], slot [s] and position [s], seed [n, 2] and the other "
                                       "wishes [n] must agree");
  }
  const int64_t real = std::clamp<int64_t>(*count.typed_data(), 0, rows);
  int32_t* to = tokens->typed_data();
  std::fill(to + real, to + rows, 0);
  try {
    std::vector<Wish> wishes(real);
    for (int64_t i = 0; i < real; ++i) {
      const int64_t at = slot.typed_data()[i];
      if (at < 0 || at >= slots) return ffi::Error::InvalidArgument("slipstream sampling: a slot that is not there");
      Wish& wish = wishes[i];
      wish = {temperature.typed_data()[at], top_p.typed_data()[at], min_p.typed_data()[at], top_k.typed_data()[at], {0, 0}};
      if (wish.temperature > 0) noise_key(seed.typed_data() + 2 * at, position.typed_data()[i], wish.key);
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
                                  .Arg<slipstream::Numbers>()
                                  .Arg<slipstream::Numbers>()
                                  .Arg<slipstream::Floats>()
                                  .Arg<slipstream::Floats>()
                                  .Arg<slipstream::Floats>()
                                  .Arg<slipstream::Numbers>()
                                  .Arg<xla::ffi::BufferR2<xla::ffi::U32>>()
                                  .Ret<slipstream::Numbers>());

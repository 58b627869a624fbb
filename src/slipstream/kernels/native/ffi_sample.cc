// XLA's handler of drawing. Operands: logits f32[s, v], count i32[] (rows that are real: the others give 0), slot i32[s] (which of
// the n wishes is a row's), position i32[s], wishes i32[n, 6]: the bits of an `Asked` each. Result: i32[s].
#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "entry.h"
#include "sample.h"
#include "trace.h"
#include "xla/ffi/api/ffi.h"

namespace slipstream {
namespace {

namespace ffi = xla::ffi;
using Numbers = ffi::BufferR1<ffi::S32>;

// A row of the wishes; the seed's high word comes first.
struct Asked {
  float temperature, top_p, min_p;
  int32_t top_k;
  uint32_t seed[2];
};
constexpr int64_t kColumns = sizeof(Asked) / sizeof(int32_t);

ffi::Error sampling(ffi::BufferR2<ffi::F32> logits, ffi::BufferR0<ffi::S32> count, Numbers slot, Numbers position,
                    ffi::BufferR2<ffi::S32> wishes, ffi::Result<Numbers> tokens) {
  Traced trace;
  const int64_t rows = logits.dimensions()[0], vocab = logits.dimensions()[1];
  const int64_t slots = wishes.dimensions()[0];
  const auto fits = [rows](const auto& buffer) { return buffer.dimensions()[0] == rows; };
  if (!fits(slot) || !fits(position) || !fits(*tokens) || wishes.dimensions()[1] != kColumns) {
    return ffi::Error::InvalidArgument("slipstream sampling: logits [s, v], slot [s], position [s] and wishes [n, 6] must agree");
  }
  const int64_t real = std::clamp<int64_t>(*count.typed_data(), 0, rows);
  int32_t* to = tokens->typed_data();
  std::fill(to + real, to + rows, 0);
  try {
    std::vector<Wish> wanted(real);
    for (int64_t i = 0; i < real; ++i) {
      const int64_t at = slot.typed_data()[i];
      if (at < 0 || at >= slots) return ffi::Error::InvalidArgument("slipstream sampling: a slot that is not there");
      Asked asked;
      std::memcpy(&asked, wishes.typed_data() + at * kColumns, sizeof asked);
      Wish& wish = wanted[i];
      wish = {asked.temperature, asked.top_p, asked.min_p, asked.top_k, {0, 0}};
      if (wish.temperature > 0) noise_key(asked.seed, position.typed_data()[i], wish.key);
    }
    sample(logits.typed_data(), real, vocab, wanted.data(), to);
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
                                  .Arg<xla::ffi::BufferR2<xla::ffi::S32>>()
                                  .Ret<slipstream::Numbers>());

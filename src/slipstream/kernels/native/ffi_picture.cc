// XLA's handlers of picture.h: a convolution in Winograd's domain, attention of a batch, and a norm of groups.
#include <new>
#include <string>

#include "picture.h"
#include "xla/ffi/api/ffi.h"

namespace slipstream {
namespace {

namespace ffi = xla::ffi;
template <size_t rank>
using Floats = ffi::Buffer<ffi::F32, rank>;
template <size_t rank>
using Result = ffi::Result<Floats<rank>>;

template <class F>
ffi::Error run(const char* wrong, F&& fn) {
  if (wrong) return ffi::Error::InvalidArgument(std::string("slipstream: ") + wrong);
  try {
    fn();
    return ffi::Error::Success();
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "slipstream: no memory for a picture");
  }
}

// x [b, y, x, i], weights [points, blocks, padded i, 16], bias [b, o]: [b, y', x', o].
ffi::Error convolution(Floats<4> x, Floats<4> weights, Floats<2> bias, Result<4> y, int64_t tile, bool doubled) {
  const auto in = x.dimensions(), w = weights.dimensions(), out = y->dimensions();
  Convolution c;
  c.x = x.typed_data(), c.batch = in[0], c.rows = in[1], c.columns = in[2], c.in = in[3], c.out = out[3], c.doubled = doubled;
  c.tile = tile, c.weights = weights.typed_data(), c.bias = bias.typed_data(), c.y = y->typed_data();
  const char* wrong = nullptr;
  if (tile != 2 && tile != 4) wrong = "a tile must be 2 or 4";
  else if (out[0] != c.batch || out[1] != c.height() || out[2] != c.width()) wrong = "the result must be a picture of x's size";
  else if (w[0] != c.points() || w[1] != whole_blocks(c.out) || w[2] != padded(c.in) || w[3] != kWide)
    wrong = "the weights must be [points, outputs / 16, inputs, 16]";
  else if (bias.dimensions()[0] != c.batch || bias.dimensions()[1] != c.out) wrong = "the bias must be [b, o]";
  return run(wrong, [&] { convolve(c); });
}

ffi::Error batched_attention(Floats<4> q, Floats<4> k, Floats<4> v, Result<4> y, float scale) {
  const auto a = q.dimensions(), b = k.dimensions();
  const char* wrong = nullptr;
  if (a[0] != b[0] || a[2] != b[2] || a[3] != b[3]) wrong = "queries and keys must have the same batch, heads and size";
  else if (!(v.dimensions() == b)) wrong = "values must be like keys";
  else if (!(y->dimensions() == a)) wrong = "the result must be like the queries";
  else if (b[1] == 0) wrong = "there must be keys";
  const BatchedAttention call{q.typed_data(), k.typed_data(), v.typed_data(), a[0], a[1], b[1], a[2], a[3], scale, y->typed_data()};
  return run(wrong, [&] { attend_batch(call); });
}

ffi::Error group_norm(Floats<3> x, Floats<1> weight, Floats<1> bias, Result<3> y, int64_t groups, float eps, bool silu) {
  const auto size = x.dimensions();
  const char* wrong = nullptr;
  if (groups < 1 || size[2] % groups) wrong = "channels must divide into the groups";
  else if (weight.dimensions()[0] != size[2] || bias.dimensions()[0] != size[2]) wrong = "weight and bias must be [c]";
  else if (!(y->dimensions() == size)) wrong = "the result must be like x";
  const GroupNorm call{x.typed_data(), size[0], size[1], size[2], groups, weight.typed_data(), bias.typed_data(), eps, silu,
                       y->typed_data()};
  return run(wrong, [&] { norm_groups(call); });
}

// x [t, c], bias [c], other [t, c] and other_bias [c], or both without elements: [t, c].
ffi::Error activation(Floats<2> x, Floats<1> bias, Floats<2> other, Floats<1> other_bias, Result<2> y, bool tanh) {
  const auto size = x.dimensions();
  const bool gated = other.element_count() > 0;
  const char* wrong = nullptr;
  if (bias.dimensions()[0] != size[1]) wrong = "the bias must be [c]";
  else if (!(y->dimensions() == size)) wrong = "the result must be like x";
  else if (gated && (!(other.dimensions() == size) || other_bias.dimensions()[0] != size[1]))
    wrong = "what is multiplied must be like x";
  const Gelu call{x.typed_data(), bias.typed_data(), gated ? other.typed_data() : nullptr, other_bias.typed_data(), size[0],
                  size[1],        tanh,              y->typed_data()};
  return run(wrong, [&] { gelu(call); });
}

}  // namespace

#define EXPORT __attribute__((visibility("default")))

extern "C" EXPORT XLA_FFI_Error* slipstream_ffi_convolution(XLA_FFI_CallFrame* frame);
extern "C" EXPORT XLA_FFI_Error* slipstream_ffi_batched_attention(XLA_FFI_CallFrame* frame);
extern "C" EXPORT XLA_FFI_Error* slipstream_ffi_group_norm(XLA_FFI_CallFrame* frame);

extern "C" EXPORT XLA_FFI_Error* slipstream_ffi_gelu(XLA_FFI_CallFrame* frame);

XLA_FFI_DEFINE_HANDLER_SYMBOL(slipstream_ffi_gelu, activation,
                              ffi::Ffi::Bind()
                                  .Arg<Floats<2>>()  // x
                                  .Arg<Floats<1>>()  // bias
                                  .Arg<Floats<2>>()  // other, or [0, 0]
                                  .Arg<Floats<1>>()  // other_bias, or [0]
                                  .Ret<Floats<2>>()
                                  .Attr<bool>("tanh"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(slipstream_ffi_convolution, convolution,
                              ffi::Ffi::Bind()
                                  .Arg<Floats<4>>()  // x
                                  .Arg<Floats<4>>()  // weights
                                  .Arg<Floats<2>>()  // bias
                                  .Ret<Floats<4>>()
                                  .Attr<int64_t>("tile")
                                  .Attr<bool>("doubled"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(slipstream_ffi_batched_attention, batched_attention,
                              ffi::Ffi::Bind()
                                  .Arg<Floats<4>>()  // q
                                  .Arg<Floats<4>>()  // k
                                  .Arg<Floats<4>>()  // v
                                  .Ret<Floats<4>>()
                                  .Attr<float>("scale"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(slipstream_ffi_group_norm, group_norm,
                              ffi::Ffi::Bind()
                                  .Arg<Floats<3>>()  // x
                                  .Arg<Floats<1>>()  // weight
                                  .Arg<Floats<1>>()  // bias
                                  .Ret<Floats<3>>()
                                  .Attr<int64_t>("groups")
                                  .Attr<float>("eps")
                                  .Attr<bool>("silu"));

}  // namespace slipstream

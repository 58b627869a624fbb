// XLA's handler of attention. The cache is donated: its operands and its results must be the same memory.
//
// Operands: q f32[t, n, h], k and v f32[t, k, h], the cache's k and v (f32, f16, bf16 or s8; shapes: CacheLayout), layer i32[],
// starts i32[s + 1], lengths i32[s], pages i32[s, p], cos and sin f32[t, r/2], of the first r elements of a head, or f32[0, 0] where q and k are not
// to be rotated, the weights of the norms of q's and k's heads f32[h], or f32[0] for no norm, sinks f32[n], or f32[0] for none.
// After them, of a cache of s8, the scales of k and of v, f32.
// Results: f32[t, n, h], the cache's k and v, and their scales if there are any. Attributes: layout ("by_token" or "by_head"), scale f32, window i64 (0: none),
// soft_cap f32 (0: none), q_norm_eps, q_norm_offset, k_norm_eps, k_norm_offset f32.
#include <algorithm>
#include <new>
#include <string>
#include <string_view>

#include "attention.h"
#include "entry.h"
#include "trace.h"
#include "xla/ffi/api/ffi.h"

namespace slipstream {
namespace {

namespace ffi = xla::ffi;
using Values = ffi::BufferR3<ffi::F32>;  // [t, n, h]
using Angles = ffi::BufferR2<ffi::F32>;
using Scales = ffi::BufferR4<ffi::F32>;
using Weights = ffi::BufferR1<ffi::F32>;
using Numbers = ffi::BufferR1<ffi::S32>;

ffi::Error wrong(const std::string& what) { return ffi::Error::InvalidArgument("slipstream attention: " + what); }

template <class Buffer>
bool same_shape(const Buffer& a, std::initializer_list<int64_t> b) {
  const auto dimensions = a.dimensions();
  if (dimensions.size() != b.size()) return false;
  size_t i = 0;
  for (const int64_t size : b) {
    if (dimensions[i++] != size) return false;
  }
  return true;
}

// Writes down what a call will read and do.
void note(Traced& trace, const Attention& c, int64_t element_bytes) {
  Call& call = trace.call;
  call.part = Part::attention, call.in = c.heads, call.out = c.size;
  for (int64_t row = 0; row < c.rows; ++row) {
    const int64_t count = c.starts[row + 1] - c.starts[row], length = c.lengths[row];
    if (count == 0) continue;
    const int64_t most = c.window > 0 ? c.window : length;
    call.rows += count, call.bytes += 2 * std::min(length, most + count - 1) * c.kv_heads * c.size * element_bytes;
    for (int64_t i = 0; i < count; ++i) call.operations += 4 * std::min(length - count + 1 + i, most) * c.heads * c.size;
  }
}

ffi::Error attention(Values q, Values k, Values v, ffi::AnyBuffer cache_k, ffi::AnyBuffer cache_v,
                     ffi::BufferR0<ffi::S32> layer, Numbers starts, Numbers lengths, ffi::BufferR2<ffi::S32> pages, Angles cos,
                     Angles sin, Weights q_norm, Weights k_norm, Weights sinks, ffi::RemainingArgs scales, ffi::Result<Values> out, ffi::Result<ffi::AnyBuffer> new_k, ffi::Result<ffi::AnyBuffer> new_v, ffi::RemainingRets new_scales,
                     std::string_view layout, float scale, int64_t window, float soft_cap, float q_norm_eps,
                     float q_norm_offset, float k_norm_eps, float k_norm_offset) {
  Traced trace;
  Attention c{};
  c.tokens = q.dimensions()[0], c.heads = q.dimensions()[1], c.size = q.dimensions()[2], c.kv_heads = k.dimensions()[1];
  c.rows = lengths.dimensions()[0], c.pages_per_row = pages.dimensions()[1];
  const std::initializer_list<int64_t> kv = {c.tokens, c.kv_heads, c.size};
  if (!same_shape(k, kv) || !same_shape(v, kv)) return wrong("k and v must be [t, k, h], like q [t, n, h]");
  if (!same_shape(*out, {c.tokens, c.heads, c.size})) return wrong("the result must be shaped like q");
  if (!same_shape(starts, {c.rows + 1}) || pages.dimensions()[0] != c.rows) {
    return wrong("starts [s + 1], lengths [s] and pages [s, p] must agree");
  }

  if (layout == "by_token") {
    c.layout = CacheLayout::by_token;
  } else if (layout == "by_head") {
    c.layout = CacheLayout::by_head;
  } else {
    return wrong("the layout must be by_token or by_head");
  }
  const bool by_head = c.layout == CacheLayout::by_head;
  const auto shape = cache_k.dimensions();
  if (shape.size() != 5) return wrong("the cache must have five axes");
  c.layers = shape[0], c.pages = shape[1], c.page_size = shape[by_head ? 4 : 2];
  const int64_t l = c.layers, p = c.pages, b = c.page_size;
  const bool fits = by_head ? same_shape(cache_k, {l, p, c.kv_heads, c.size, b}) && same_shape(cache_v, {l, p, c.kv_heads, b, c.size})
                            : same_shape(cache_k, {l, p, b, c.kv_heads, c.size}) && same_shape(cache_v, {l, p, b, c.kv_heads, c.size});
  if (!fits) return wrong("the cache's shape does not fit its layout and k [t, k, h]");
  if (cache_k.element_type() != cache_v.element_type()) return wrong("the cache's k and v must have one type");
  switch (cache_k.element_type()) {
    case ffi::F32: c.type = CacheType::f32; break;
    case ffi::F16: c.type = CacheType::f16; break;
    case ffi::BF16: c.type = CacheType::bf16; break;
    case ffi::S8: c.type = CacheType::i8; break;
    default: return wrong("the cache must be f32, f16, bf16 or s8");
  }
  if (cache_k.untyped_data() != new_k->untyped_data()) {
    return wrong("XLA copied the cache's k instead of updating it in place: donate it, and pass it on unchanged");
  }
  if (cache_v.untyped_data() != new_v->untyped_data()) {
    return wrong("XLA copied the cache's v instead of updating it in place: donate it, and pass it on unchanged");
  }

  const size_t scaled = c.type == CacheType::i8 ? 2 : 0;
  if (scales.size() != scaled || new_scales.size() != scaled) return wrong("a cache of s8 has scales of k and of v, others none");
  for (size_t i = 0; i < scaled; ++i) {
    const auto old = scales.get<Scales>(i);
    auto updated = new_scales.get<Scales>(i);
    if (!old || !updated) return wrong("the scales must be f32 with four axes");
    const bool fit = by_head ? same_shape(*old, {l, p, c.kv_heads, b}) : same_shape(*old, {l, p, b, c.kv_heads});
    if (!fit) return wrong("the shape of the scales does not fit the cache's");
    if ((*old).untyped_data() != (**updated).untyped_data()) {
      return wrong("XLA copied the cache's scales instead of updating them in place: donate them, and pass them on unchanged");
    }
    (i == 0 ? c.k_scale : c.v_scale) = (**updated).typed_data();
  }

  if (cos.element_count() > 0 || sin.element_count() > 0) {
    c.pairs = cos.dimensions()[1];
    if (2 * c.pairs > c.size || !same_shape(cos, {c.tokens, c.pairs}) || !same_shape(sin, {c.tokens, c.pairs})) {
      return wrong("cos and sin must be [t, r/2], with r no more than h");
    }
    c.cos = cos.typed_data(), c.sin = sin.typed_data();
  }
  for (const Weights& norm : {q_norm, k_norm}) {
    if (norm.element_count() > 0 && !same_shape(norm, {c.size})) return wrong("the weight of a head's norm must be [h]");
  }
  if (q_norm.element_count() > 0) c.q_norm = {q_norm.typed_data(), q_norm_eps, q_norm_offset};
  if (k_norm.element_count() > 0) c.k_norm = {k_norm.typed_data(), k_norm_eps, k_norm_offset};
  if (sinks.element_count() > 0) {
    if (!same_shape(sinks, {c.heads})) return wrong("sinks must be [n]");
    c.sinks = sinks.typed_data();
  }
  c.layer = *layer.typed_data();
  c.q = q.typed_data(), c.k = k.typed_data(), c.v = v.typed_data();
  c.q_stride = c.heads * c.size, c.k_stride = c.v_stride = c.kv_heads * c.size;
  c.cache_k = new_k->untyped_data(), c.cache_v = new_v->untyped_data();
  c.starts = starts.typed_data(), c.lengths = lengths.typed_data(), c.page_table = pages.typed_data();
  c.scale = scale, c.window = window, c.soft_cap = soft_cap;
  c.out = (*out).typed_data();
  try {
    if (const char* what = attend(c, isa())) return wrong(what);
  } catch (const std::bad_alloc&) {
    return wrong("out of memory");
  }
  note(trace, c, static_cast<int64_t>(ffi::ByteWidth(cache_k.element_type())));
  return ffi::Error::Success();
}

}  // namespace
}  // namespace slipstream

SLIPSTREAM_ENTRY XLA_FFI_Error* slipstream_ffi_attend(XLA_FFI_CallFrame* frame);

XLA_FFI_DEFINE_HANDLER_SYMBOL(slipstream_ffi_attend, slipstream::attention,
                              xla::ffi::Ffi::Bind()
                                  .Arg<slipstream::Values>()
                                  .Arg<slipstream::Values>()
                                  .Arg<slipstream::Values>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::BufferR0<xla::ffi::S32>>()
                                  .Arg<slipstream::Numbers>()
                                  .Arg<slipstream::Numbers>()
                                  .Arg<xla::ffi::BufferR2<xla::ffi::S32>>()
                                  .Arg<slipstream::Angles>()
                                  .Arg<slipstream::Angles>()
                                  .Arg<slipstream::Weights>()
                                  .Arg<slipstream::Weights>()
                                  .Arg<slipstream::Weights>()
                                  .RemainingArgs()
                                  .Ret<slipstream::Values>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .RemainingRets()
                                  .Attr<std::string_view>("layout")
                                  .Attr<float>("scale")
                                  .Attr<int64_t>("window")
                                  .Attr<float>("soft_cap")
                                  .Attr<float>("q_norm_eps")
                                  .Attr<float>("q_norm_offset")
                                  .Attr<float>("k_norm_eps")
                                  .Attr<float>("k_norm_offset"));

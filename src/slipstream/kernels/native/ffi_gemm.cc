// XLA's handlers of the products. Weights are stacks u8[layers, bytes] and `layer` picks one, so that a scan over layers
// slices nothing. `count` is how many rows are real: the others are not computed and come out as zeros. Operands that a call
// does not need have no elements: norm f32[0, 0], residual f32[0, 0].
#include <cstring>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "gemm.h"
#include "xla/ffi/api/ffi.h"

namespace slipstream {
namespace {

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Bytes = ffi::Buffer<ffi::U8>;
using Scalar = ffi::BufferR0<ffi::S32>;
using Ids = ffi::BufferR1<ffi::S32>;
using Result = ffi::Result<Floats>;

ffi::Error wrong(const std::string& what) { return ffi::Error::InvalidArgument("slipstream: " + what); }

// Collects the first thing that is wrong with a call, so that handlers stay a list of checks.
class Checks {
 public:
  bool require(bool condition, const char* what) {
    if (!condition && !failed_) failed_ = what;
    return condition;
  }
  bool failed() const { return failed_ != nullptr; }
  ffi::Error error() const { return wrong(failed_); }

  // The input rows that are real, with their norm if there is one.
  Input input(const Floats& x, const Floats& norm, const Scalar& layer, const Scalar& count, float eps, float offset) {
    Input input;
    if (!require(x.dimensions().size() == 2, "x must be [t, in]")) return input;
    input.in = x.dimensions()[1], input.x = x.typed_data(), input.eps = eps, input.norm_offset = offset;
    const int64_t rows = *count.typed_data();
    input.rows = rows < 0 ? 0 : rows < x.dimensions()[0] ? rows : x.dimensions()[0];
    if (norm.element_count() == 0) return input;
    const auto shape = norm.dimensions();
    if (!require(shape.size() == 2 && shape[1] == input.in, "norm must be [layers, in]")) return input;
    const int64_t at = *layer.typed_data();
    if (require(at >= 0 && at < shape[0], "layer is out of range of the norm")) input.norm = norm.typed_data() + at * input.in;
    return input;
  }

  Weight weight(int64_t kind, int64_t out, int64_t in, const Bytes& stack, int64_t layer) {
    if (!require(kind >= 0 && kind < kKinds, "unknown kind of weight")) return {};
    const Weight w = packed_weight(static_cast<Kind>(kind), out, in, stack.typed_data());
    const auto shape = stack.dimensions();
    if (!require(in % format(w.kind).numbers == 0, "the inputs do not divide into the weight's blocks")) return {};
    if (!require(shape.size() == 2 && shape[1] == static_cast<int64_t>(w.bytes()), "a weight's bytes do not fit its shape"))
      return {};
    if (!require(layer >= 0 && layer < shape[0], "layer is out of range of a weight")) return {};
    return packed_weight(w.kind, out, in, stack.typed_data() + layer * shape[1]);
  }

  // A result [t, out] for t rows.
  bool result(const Floats& y, const Floats& x) {
    return require(y.dimensions().size() == 2 && y.dimensions()[0] == x.dimensions()[0], "a result must be [t, out]");
  }

  Gate gate(std::string_view name) {
    require(name == "silu" || name == "gelu_tanh", "the gate must be silu or gelu_tanh");
    return name == "silu" ? Gate::silu : Gate::gelu_tanh;
  }

  // A residual [t, out], or none.
  const float* residual(const Floats& r, const Floats& y) {
    if (r.element_count() == 0) return nullptr;
    require(r.element_count() == y.element_count() && r.dimensions().size() == 2, "the residual must be like the result");
    return r.typed_data();
  }

 private:
  const char* failed_ = nullptr;
};

void clear_padding(Floats& y, int64_t rows) {
  const int64_t t = y.dimensions()[0], out = y.dimensions()[1];
  if (rows < t) std::memset(y.typed_data() + rows * out, 0, (t - rows) * out * sizeof(float));
}

template <class F>
ffi::Error run(const Checks& checks, F&& fn) {
  if (checks.failed()) return checks.error();
  try {
    fn();
    return ffi::Error::Success();
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "slipstream: no memory for a product");
  }
}

ffi::Error gemm(Floats x, Floats norm, Floats residual, Scalar layer, Scalar count, ffi::RemainingArgs weights,
                ffi::RemainingRets results, ffi::Span<const int64_t> kinds, bool exact, float eps, float norm_offset) {
  Checks checks;
  const Input input = checks.input(x, norm, layer, count, eps, norm_offset);
  checks.require(weights.size() == kinds.size() && results.size() == kinds.size(), "as many kinds as weights and results");
  checks.require(residual.element_count() == 0 || weights.size() == 1, "a residual goes with one weight");
  std::vector<Product> products;
  std::vector<Floats> ys;
  for (size_t i = 0; i < kinds.size() && !checks.failed(); i++) {
    const auto stack = weights.get<Bytes>(i);
    auto y = results.get<Floats>(i);
    if (!checks.require(stack.has_value() && y.has_value(), "weights must be u8 and results f32")) break;
    if (!checks.result(**y, x)) break;
    const Weight w = checks.weight(kinds[i], (**y).dimensions()[1], input.in, *stack, *layer.typed_data());
    products.push_back({w, (**y).typed_data(), checks.residual(residual, **y)});
    ys.push_back(**y);
  }
  return run(checks, [&] {
    multiply(input, exact, products.data(), static_cast<int>(products.size()));
    for (Floats& y : ys) clear_padding(y, input.rows);
  });
}

ffi::Error gated(Floats x, Floats norm, Scalar layer, Scalar count, Bytes gate_stack, Bytes up_stack, Result y,
                 ffi::Span<const int64_t> kinds, std::string_view activation, bool exact, float eps, float norm_offset) {
  Checks checks;
  const Input input = checks.input(x, norm, layer, count, eps, norm_offset);
  const Gate gate = checks.gate(activation);
  Weight g, u;
  if (checks.require(kinds.size() == 2, "two kinds: of the gate and of the other") && checks.result(*y, x)) {
    g = checks.weight(kinds[0], y->dimensions()[1], input.in, gate_stack, *layer.typed_data());
    u = checks.weight(kinds[1], y->dimensions()[1], input.in, up_stack, *layer.typed_data());
  }
  return run(checks, [&] {
    multiply_gated(input, exact, gate, g, u, y->typed_data());
    clear_padding(*y, input.rows);
  });
}

ffi::Error mlp(Floats x, Floats norm, Floats residual, Scalar layer, Scalar count, Bytes gate_stack, Bytes up_stack,
               Bytes down_stack, Result y, ffi::Span<const int64_t> kinds, int64_t hidden, std::string_view activation,
               bool exact, float eps, float norm_offset) {
  Checks checks;
  const Input input = checks.input(x, norm, layer, count, eps, norm_offset);
  const Gate gate = checks.gate(activation);
  Weight g, u, d;
  const float* added = nullptr;
  if (checks.require(kinds.size() == 3 && hidden > 0, "three kinds: gate, up, down") && checks.result(*y, x)) {
    const int64_t at = *layer.typed_data();
    g = checks.weight(kinds[0], hidden, input.in, gate_stack, at);
    u = checks.weight(kinds[1], hidden, input.in, up_stack, at);
    d = checks.weight(kinds[2], y->dimensions()[1], hidden, down_stack, at);
    added = checks.residual(residual, *y);
  }
  return run(checks, [&] {
    multiply_mlp(input, exact, gate, g, u, {d, y->typed_data(), added});
    clear_padding(*y, input.rows);
  });
}

ffi::Error rows(Ids ids, Scalar count, Bytes stack, Result y, int64_t kind, int64_t out, float scale) {
  Checks checks;
  const bool shaped = checks.require(y->dimensions().size() == 2 && y->dimensions()[0] == ids.dimensions()[0],
                                     "the result must be [ids, in]");
  const Weight w = shaped ? checks.weight(kind, out, y->dimensions()[1], stack, 0) : Weight{};
  return run(checks, [&] {
    const int64_t real = *count.typed_data(), t = ids.dimensions()[0], n = real < 0 ? 0 : real < t ? real : t;
    read_rows(w, ids.typed_data(), n, scale, y->typed_data());
    clear_padding(*y, n);
  });
}

}  // namespace

#define EXPORT __attribute__((visibility("default")))

extern "C" EXPORT XLA_FFI_Error* slipstream_ffi_gemm(XLA_FFI_CallFrame* frame);
extern "C" EXPORT XLA_FFI_Error* slipstream_ffi_gated(XLA_FFI_CallFrame* frame);
extern "C" EXPORT XLA_FFI_Error* slipstream_ffi_mlp(XLA_FFI_CallFrame* frame);
extern "C" EXPORT XLA_FFI_Error* slipstream_ffi_rows(XLA_FFI_CallFrame* frame);

XLA_FFI_DEFINE_HANDLER_SYMBOL(slipstream_ffi_gemm, gemm,
                              ffi::Ffi::Bind()
                                  .Arg<Floats>()  // x [t, in]
                                  .Arg<Floats>()  // norm [layers, in] or [0, 0]
                                  .Arg<Floats>()  // residual [t, out] or [0, 0]
                                  .Arg<Scalar>()  // layer
                                  .Arg<Scalar>()  // count
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<ffi::Span<const int64_t>>("kinds")
                                  .Attr<bool>("exact")
                                  .Attr<float>("eps")
                                  .Attr<float>("norm_offset"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(slipstream_ffi_gated, gated,
                              ffi::Ffi::Bind()
                                  .Arg<Floats>()  // x [t, in]
                                  .Arg<Floats>()  // norm [layers, in] or [0, 0]
                                  .Arg<Scalar>()  // layer
                                  .Arg<Scalar>()  // count
                                  .Arg<Bytes>()   // gate
                                  .Arg<Bytes>()   // up
                                  .Ret<Floats>()  // [t, out]
                                  .Attr<ffi::Span<const int64_t>>("kinds")
                                  .Attr<std::string_view>("activation")
                                  .Attr<bool>("exact")
                                  .Attr<float>("eps")
                                  .Attr<float>("norm_offset"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(slipstream_ffi_mlp, mlp,
                              ffi::Ffi::Bind()
                                  .Arg<Floats>()  // x [t, in]
                                  .Arg<Floats>()  // norm [layers, in] or [0, 0]
                                  .Arg<Floats>()  // residual [t, out] or [0, 0]
                                  .Arg<Scalar>()  // layer
                                  .Arg<Scalar>()  // count
                                  .Arg<Bytes>()   // gate
                                  .Arg<Bytes>()   // up
                                  .Arg<Bytes>()   // down
                                  .Ret<Floats>()  // [t, out]
                                  .Attr<ffi::Span<const int64_t>>("kinds")
                                  .Attr<int64_t>("hidden")
                                  .Attr<std::string_view>("activation")
                                  .Attr<bool>("exact")
                                  .Attr<float>("eps")
                                  .Attr<float>("norm_offset"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(slipstream_ffi_rows, rows,
                              ffi::Ffi::Bind()
                                  .Arg<Ids>()     // ids [t]
                                  .Arg<Scalar>()  // count
                                  .Arg<Bytes>()   // packed [1, bytes]
                                  .Ret<Floats>()  // [t, in]
                                  .Attr<int64_t>("kind")
                                  .Attr<int64_t>("out")
                                  .Attr<float>("scale"));

}  // namespace slipstream

// XLA's handlers of the products. A weight is u8[bytes], a stack of layers one after the other, and `layer` picks one, so that a
// scan over layers slices nothing. Attributes `kinds` and `starts` i64[weights * layers]: each layer's kind and where its bytes
// start. `count` is how many rows are real: the others are not computed and come out as zeros. Operands that a call does not
// need have no elements: norm f32[0], after f32[0], residual f32[0, 0].
#include <algorithm>
#include <cstring>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "gemm.h"
#include "rows.h"
#include "trace.h"
#include "xla/ffi/api/ffi.h"

namespace slipstream {
namespace {

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Vector = ffi::BufferR1<ffi::F32>;
using Bytes = ffi::BufferR1<ffi::U8>;
using Scalar = ffi::BufferR0<ffi::S32>;
using Ids = ffi::BufferR1<ffi::S32>;
using Result = ffi::Result<Floats>;
using Numbers = ffi::Span<const int64_t>;

ffi::Error wrong(const std::string& what) { return ffi::Error::InvalidArgument("slipstream: " + what); }

// Where the layers of each of `weights` weights lie.
struct Places {
  size_t weights;
  Numbers kinds, starts;
};

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
  Input input(const Floats& x, const Vector& norm, const Scalar& count, float eps, float offset) {
    Input input;
    if (!require(x.dimensions().size() == 2, "x must be [t, in]")) return input;
    input.in = x.dimensions()[1], input.x = x.typed_data(), input.eps = eps, input.norm_offset = offset;
    const int64_t rows = *count.typed_data();
    input.rows = rows < 0 ? 0 : rows < x.dimensions()[0] ? rows : x.dimensions()[0];
    if (norm.element_count() == 0) return input;
    if (require(static_cast<int64_t>(norm.element_count()) == input.in, "norm must be [in]")) input.norm = norm.typed_data();
    return input;
  }

  // Weight `index` of `weights` that a call has.
  Weight weight(const Places& places, size_t index, int64_t out, int64_t in, const Bytes& stack, int64_t layer) {
    const size_t layers = places.kinds.size() / places.weights;
    if (!require(places.kinds.size() == layers * places.weights && places.starts.size() == places.kinds.size(),
                 "as many kinds and starts as weights times layers"))
      return {};
    if (!require(layer >= 0 && layer < static_cast<int64_t>(layers), "layer is out of range of a weight")) return {};
    const int64_t kind = places.kinds[index * layers + layer], start = places.starts[index * layers + layer];
    if (!require(kind >= 0 && kind < kKinds, "unknown kind of weight")) return {};
    const Weight w = packed_weight(static_cast<Kind>(kind), out, in, stack.typed_data() + start);
    if (!require(in % format(w.kind).numbers == 0, "the inputs do not divide into the weight's blocks")) return {};
    const int64_t end = start + static_cast<int64_t>(w.bytes()), size = static_cast<int64_t>(stack.element_count());
    if (!require(start >= 0 && start % 64 == 0 && end <= size, "a weight's bytes do not fit its shape")) return {};
    return w;
  }

  // A result [t, out] for t rows.
  bool result(const Floats& y, const Floats& x) {
    return require(y.dimensions().size() == 2 && y.dimensions()[0] == x.dimensions()[0], "a result must be [t, out]");
  }

  Gate gate(std::string_view name) {
    require(name == "silu" || name == "gelu_tanh", "the gate must be silu or gelu_tanh");
    return name == "silu" ? Gate::silu : Gate::gelu_tanh;
  }

  // What follows the product with result y [t, out]: `after` f32[out] or none, residual f32[t, out] or none.
  Finish finish(const Vector& after, const Floats& residual, const Floats& y, float eps, float offset) {
    Finish finish{nullptr, eps, offset, nullptr};
    if (after.element_count() > 0) {
      require(static_cast<int64_t>(after.element_count()) == y.dimensions()[1], "after must be [out]");
      finish.norm = after.typed_data();
    }
    if (residual.element_count() > 0) {
      require(residual.element_count() == y.element_count() && residual.dimensions().size() == 2,
              "the residual must be like the result");
      finish.residual = residual.typed_data();
    }
    return finish;
  }

 private:
  const char* failed_ = nullptr;
};

// Writes down what a call reads and does.
void note(Traced& trace, Part part, const Input& input, std::initializer_list<const Weight*> weights) {
  Call& call = trace.call;
  call.part = part, call.rows = input.rows, call.in = input.in;
  for (const Weight* w : weights) {
    call.weights++, call.out += w->out;
    call.bytes += static_cast<int64_t>(w->bytes()), call.operations += 2 * input.rows * w->in * w->out;
  }
}

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

// The product's own residual: where a norm comes first, finish_rows adds it.
const float* product_residual(const Finish& finish) { return finish.needed() ? nullptr : finish.residual; }

ffi::Error gemm(Floats x, Vector norm, Vector after, Floats residual, Scalar layer, Scalar count, ffi::RemainingArgs weights,
                ffi::RemainingRets results, Numbers kinds, Numbers starts, bool exact, float norm_eps, float norm_offset,
                float after_eps, float after_offset) {
  Traced trace;
  Checks checks;
  const Input input = checks.input(x, norm, count, norm_eps, norm_offset);
  const bool alone = after.element_count() == 0 && residual.element_count() == 0;
  checks.require(weights.size() > 0 && results.size() == weights.size(), "as many results as weights");
  checks.require(alone || weights.size() == 1, "a norm after, or a residual, goes with one weight");
  std::vector<Product> products;
  std::vector<Floats> ys;
  Finish finish;
  for (size_t i = 0; i < weights.size() && !checks.failed(); i++) {
    const auto stack = weights.get<Bytes>(i);
    auto y = results.get<Floats>(i);
    if (!checks.require(stack.has_value() && y.has_value(), "weights must be u8 and results f32")) break;
    if (!checks.result(**y, x)) break;
    const int64_t out = (**y).dimensions()[1];
    const Weight w = checks.weight({weights.size(), kinds, starts}, i, out, input.in, *stack, *layer.typed_data());
    finish = checks.finish(after, residual, **y, after_eps, after_offset);
    products.push_back({w, (**y).typed_data(), product_residual(finish)});
    note(trace, Part::products, input, {&w});
    ys.push_back(**y);
  }
  return run(checks, [&] {
    multiply(input, exact, products.data(), static_cast<int>(products.size()));
    if (finish.needed()) finish_rows(finish, products[0].y, input.rows, products[0].weight.out);
    for (Floats& y : ys) clear_padding(y, input.rows);
  });
}

ffi::Error mlp(Floats x, Vector norm, Vector after, Floats residual, Scalar layer, Scalar count, Bytes gate_stack,
               Bytes up_stack, Bytes down_stack, Result y, Numbers kinds, Numbers starts, int64_t hidden,
               std::string_view activation, bool exact, float norm_eps, float norm_offset, float after_eps,
               float after_offset) {
  Traced trace;
  Checks checks;
  const Input input = checks.input(x, norm, count, norm_eps, norm_offset);
  const Gate gate = checks.gate(activation);
  Weight g, u, d;
  Finish finish;
  if (checks.require(hidden > 0, "hidden must be positive") && checks.result(*y, x)) {
    const Places places{3, kinds, starts};
    const int64_t at = *layer.typed_data(), out = y->dimensions()[1];
    g = checks.weight(places, 0, hidden, input.in, gate_stack, at);
    u = checks.weight(places, 1, hidden, input.in, up_stack, at);
    d = checks.weight(places, 2, out, hidden, down_stack, at);
    finish = checks.finish(after, residual, *y, after_eps, after_offset);
    note(trace, Part::feed_forward, input, {&g, &u, &d});
  }
  return run(checks, [&] {
    multiply_mlp(input, exact, gate, g, u, {d, y->typed_data(), product_residual(finish)});
    if (finish.needed()) finish_rows(finish, y->typed_data(), input.rows, d.out);
    clear_padding(*y, input.rows);
  });
}

ffi::Error rows(Ids ids, Scalar count, Bytes stack, Result y, Numbers kinds, Numbers starts, int64_t out, float scale) {
  Traced trace;
  trace.call.part = Part::rows;
  Checks checks;
  const bool shaped = checks.require(y->dimensions().size() == 2 && y->dimensions()[0] == ids.dimensions()[0],
                                     "the result must be [ids, in]");
  const Weight w = shaped ? checks.weight({1, kinds, starts}, 0, out, y->dimensions()[1], stack, 0) : Weight{};
  return run(checks, [&] {
    const int64_t real = *count.typed_data(), t = ids.dimensions()[0], n = real < 0 ? 0 : real < t ? real : t;
    read_rows(w, ids.typed_data(), n, scale, y->typed_data());
    trace.call.weights = 1, trace.call.in = w.in, trace.call.out = w.out, trace.call.rows = n;
    trace.call.bytes = n * static_cast<int64_t>(w.bytes()) / std::max<int64_t>(w.out, 1);
    clear_padding(*y, n);
  });
}

}  // namespace

#define EXPORT __attribute__((visibility("default")))

extern "C" EXPORT XLA_FFI_Error* slipstream_ffi_gemm(XLA_FFI_CallFrame* frame);
extern "C" EXPORT XLA_FFI_Error* slipstream_ffi_mlp(XLA_FFI_CallFrame* frame);
extern "C" EXPORT XLA_FFI_Error* slipstream_ffi_rows(XLA_FFI_CallFrame* frame);

XLA_FFI_DEFINE_HANDLER_SYMBOL(slipstream_ffi_gemm, gemm,
                              ffi::Ffi::Bind()
                                  .Arg<Floats>()  // x [t, in]
                                  .Arg<Vector>()  // norm [in] or [0]
                                  .Arg<Vector>()  // after [out] or [0]
                                  .Arg<Floats>()  // residual [t, out] or [0, 0]
                                  .Arg<Scalar>()  // layer
                                  .Arg<Scalar>()  // count
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<Numbers>("kinds")
                                  .Attr<Numbers>("starts")
                                  .Attr<bool>("exact")
                                  .Attr<float>("norm_eps")
                                  .Attr<float>("norm_offset")
                                  .Attr<float>("after_eps")
                                  .Attr<float>("after_offset"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(slipstream_ffi_mlp, mlp,
                              ffi::Ffi::Bind()
                                  .Arg<Floats>()  // x [t, in]
                                  .Arg<Vector>()  // norm [in] or [0]
                                  .Arg<Vector>()  // after [out] or [0]
                                  .Arg<Floats>()  // residual [t, out] or [0, 0]
                                  .Arg<Scalar>()  // layer
                                  .Arg<Scalar>()  // count
                                  .Arg<Bytes>()   // gate
                                  .Arg<Bytes>()   // up
                                  .Arg<Bytes>()   // down
                                  .Ret<Floats>()  // [t, out]
                                  .Attr<Numbers>("kinds")
                                  .Attr<Numbers>("starts")
                                  .Attr<int64_t>("hidden")
                                  .Attr<std::string_view>("activation")
                                  .Attr<bool>("exact")
                                  .Attr<float>("norm_eps")
                                  .Attr<float>("norm_offset")
                                  .Attr<float>("after_eps")
                                  .Attr<float>("after_offset"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(slipstream_ffi_rows, rows,
                              ffi::Ffi::Bind()
                                  .Arg<Ids>()     // ids [t]
                                  .Arg<Scalar>()  // count
                                  .Arg<Bytes>()   // packed
                                  .Ret<Floats>()  // [t, in]
                                  .Attr<Numbers>("kinds")
                                  .Attr<Numbers>("starts")
                                  .Attr<int64_t>("out")
                                  .Attr<float>("scale"));

}  // namespace slipstream

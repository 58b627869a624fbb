// Writes what the portable kernels compute from numbers that are the same on every machine: portable_results LIBRARY KINDS > FILE,
// where KINDS is how many kinds of packed weights there are.
// scripts/aarch64 compares the files of two processors.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "attention.h"

namespace {

using slipstream::Attention;
using slipstream::CacheLayout;
using slipstream::CacheType;
using Floats = std::vector<float>;

void* library;

template <class F>
F* entry(const char* name) {
  void* found = dlsym(library, name);
  if (!found) {
    std::fprintf(stderr, "portable_results: no entry %s\n", name);
    std::exit(1);
  }
  return reinterpret_cast<F*>(found);
}

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "portable_results: %s\n", what);
  std::exit(1);
}

uint32_t random_bits() {  // Marsaglia's xorshift
  static uint32_t state = 2463534242u;
  state ^= state << 13;
  state ^= state >> 17;
  return state ^= state << 5;
}

Floats random_floats(int64_t count) {  // within -1 and 1
  Floats values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(static_cast<int32_t>(random_bits())) / 2147483648.0f;
  return values;
}

void write(const Floats& values) {
  require(std::fwrite(values.data(), sizeof(float), values.size(), stdout) == values.size(), "cannot write");
}

// Random bits that are no infinities: bytes under 64 make scales and floats between 0 and 2.
struct Packed {
  int kind;
  int64_t out, in;
  uint8_t* data;

  Packed(int kind_, int64_t out_, int64_t in_) : kind(kind_), out(out_), in(in_) {
    const int64_t bytes = entry<int64_t(int, int64_t, int64_t)>("slipstream_packed_bytes")(kind, out, in);
    data = static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64)));
    require(data != nullptr, "no memory");
    for (int64_t i = 0; i < bytes; ++i) data[i] = static_cast<uint8_t>(random_bits() >> 8) % 64;
  }
  Packed(const Packed&) = delete;
  ~Packed() { std::free(data); }
};

void products(int kinds) {
  auto* const gemm = entry<int(int, int64_t, int64_t, const uint8_t*, const float*, int64_t, int, const float*, float, float,
                               const float*, float*)>("slipstream_gemm");
  auto* const gated = entry<int(int, int, int64_t, int64_t, const uint8_t*, const uint8_t*, const float*, int64_t, int,
                                const float*, float, float, int, float*)>("slipstream_gated");
  auto* const rows_of =
      entry<int(int, int64_t, int64_t, const uint8_t*, const int32_t*, int64_t, float, float*)>("slipstream_rows");
  for (int kind = 0; kind < kinds; ++kind) {
    const Packed a(kind, 37, 512), b(kind, 37, 512);
    const Floats norm = random_floats(a.in);
    for (const int64_t rows : {1, 5, 30}) {
      const Floats x = random_floats(rows * a.in), residual = random_floats(rows * a.out);
      Floats y(static_cast<size_t>(rows * a.out));
      for (const int exact : {0, 1}) {
        require(!gemm(kind, a.out, a.in, a.data, x.data(), rows, exact, norm.data(), 1e-5f, 1.0f, residual.data(), y.data()),
                "a product failed");
        write(y);
        require(!gated(kind, kind, a.out, a.in, a.data, b.data, x.data(), rows, exact, nullptr, 0, 0, exact, y.data()),
                "a gated product failed");
        write(y);
      }
    }
    const int32_t ids[] = {0, 36, 5, -1};
    Floats y(static_cast<size_t>(4 * a.in));
    require(!rows_of(kind, a.out, a.in, a.data, ids, 4, 2.0f, y.data()), "reading rows failed");
    write(y);
  }
}

void attention(CacheType type, CacheLayout layout) {
  Attention call{};
  call.tokens = 24, call.heads = 6, call.kv_heads = 2, call.size = 32;
  call.rows = 3, call.pages_per_row = 20, call.layers = 2, call.pages = 60, call.page_size = 16, call.layer = 1;
  call.q_stride = call.heads * call.size, call.k_stride = call.v_stride = call.kv_heads * call.size;
  const Floats q = random_floats(call.tokens * call.q_stride), k = random_floats(call.tokens * call.k_stride),
               v = random_floats(call.tokens * call.v_stride), cos = random_floats(call.tokens * call.size / 2),
               sin = random_floats(call.tokens * call.size / 2);
  const size_t elements = static_cast<size_t>(call.layers * call.pages * call.page_size * call.k_stride);
  // Bytes of 0: earlier tokens whose keys and values are 0.
  std::vector<uint8_t> cache_k(elements * 4 + 64), cache_v(elements * 4 + 64);
  std::vector<int32_t> table(static_cast<size_t>(call.rows * call.pages_per_row));
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i * 7 % 60);
  const int32_t starts[] = {0, 1, 21, 24}, lengths[] = {300, 20, 40};
  Floats out(static_cast<size_t>(call.tokens * call.q_stride));
  call.q = q.data(), call.k = k.data(), call.v = v.data(), call.cos = cos.data(), call.sin = sin.data(), call.pairs = call.size / 2;
  call.cache_k = cache_k.data(), call.cache_v = cache_v.data(), call.type = type, call.layout = layout;
  call.starts = starts, call.lengths = lengths, call.page_table = table.data();
  call.scale = 3.0f, call.soft_cap = 5.0f, call.window = 50, call.out = out.data();
  const char* const wrong = entry<const char*(const Attention*)>("slipstream_attend")(&call);
  require(!wrong, wrong ? wrong : "");
  write(out);
}

}  // namespace

int main(int count, char** arguments) {
  require(count == 3, "usage: portable_results LIBRARY KINDS");
  library = dlopen(arguments[1], RTLD_NOW);
  require(library != nullptr, "the library does not load");
  require(!entry<int(const char*)>("slipstream_set_isa")("portable"), "there is no portable path");
  products(std::atoi(arguments[2]));
  for (const CacheType type : {CacheType::f32, CacheType::f16, CacheType::bf16})
    for (const CacheLayout layout : {CacheLayout::by_token, CacheLayout::by_head}) attention(type, layout);
  return 0;
}

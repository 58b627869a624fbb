// Packed weights: the layout that pack.py writes (its docstring describes the sections).
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace slipstream {

// GGUF's, floats, and integers of our own with a float32 scale for so many inputs.
enum class Kind : int {
  q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k, f32, f16, bf16, int8_32, int8_64, int8_128, int4_32, int4_64, int4_128,
  int8z_32, int8z_64, int8z_128, f8_32, f8_64, f8_128  // with zero points; float8_e4m3
};
constexpr int kKinds = 23, kPanel = 16, kGroup = 32;

// How the numbers u (without sign) of a group of 32 become weights.
enum class Mode {
  minimum,  // scale * u + offset
  centred,  // scale * (u - zero)
  halves,   // the same, with one scale for inputs 0-15 and another for 16-31
  shifted,  // scale * (u - zero) + offset
};

struct Format {
  int numbers;                      // of a block: `in` is a multiple of this
  int low, high, scales, supers;    // bytes of a panel's sections: a group each, for `supers` 8 groups, for shared scales more
  Mode mode;
  int zero_bits;                    // zero = 1 << zero_bits, where the mode has one
  int element;                      // bytes of a float, 0 for quantized kinds
  int shared = 0;                   // groups with one scale in float32, as a power of 2, plus 1; 0: halves, one a group
};

constexpr Format kFormats[kKinds] = {
    {32, 256, 0, 32, 0, Mode::centred, 3, 0},     // q4_0
    {32, 256, 0, 64, 0, Mode::minimum, 0, 0},     // q4_1
    {32, 256, 64, 32, 0, Mode::centred, 4, 0},    // q5_0
    {32, 256, 64, 64, 0, Mode::minimum, 0, 0},    // q5_1
    {32, 512, 0, 32, 0, Mode::centred, 7, 0},     // q8_0
    {256, 256, 0, 32, 64, Mode::minimum, 0, 0},   // q4_k
    {256, 256, 64, 32, 64, Mode::minimum, 0, 0},  // q5_k
    {256, 256, 128, 32, 32, Mode::halves, 5, 0},  // q6_k
    {1, 0, 0, 0, 0, Mode::minimum, 0, 4},         // f32
    {1, 0, 0, 0, 0, Mode::minimum, 0, 2},         // f16
    {1, 0, 0, 0, 0, Mode::minimum, 0, 2},         // bf16
    {32, 512, 0, 64, 0, Mode::centred, 7, 0, 1},  // int8_32
    {64, 512, 0, 64, 0, Mode::centred, 7, 0, 2},  // int8_64
    {128, 512, 0, 64, 0, Mode::centred, 7, 0, 3},  // int8_128
    {32, 256, 0, 64, 0, Mode::centred, 3, 0, 1},  // int4_32
    {64, 256, 0, 64, 0, Mode::centred, 3, 0, 2},  // int4_64
    {128, 256, 0, 64, 0, Mode::centred, 3, 0, 3},  // int4_128
    {32, 512, 0, 128, 0, Mode::shifted, 7, 0, 1},  // int8z_32
    {64, 512, 0, 128, 0, Mode::shifted, 7, 0, 2},  // int8z_64
    {128, 512, 0, 128, 0, Mode::shifted, 7, 0, 3},  // int8z_128
    {32, 0, 0, 64, 0, Mode::minimum, 0, 1, 1},    // f8_32
    {64, 0, 0, 64, 0, Mode::minimum, 0, 1, 2},    // f8_64
    {128, 0, 0, 64, 0, Mode::minimum, 0, 1, 3},   // f8_128
};

// Bytes of weights that are fetched ahead of their use: 4 KB pages stop the hardware's own prefetching.
constexpr int64_t kFetchAhead = 8192;

constexpr const Format& format(Kind kind) { return kFormats[static_cast<int>(kind)]; }
// Kinds that differ only in how many groups share a scale are read by the same code.
constexpr Kind read_as(Kind kind) {
  for (const Kind first : {Kind::f8_32, Kind::int8z_32, Kind::int4_32, Kind::int8_32})
    if (kind >= first) return first;
  return kind;
}
constexpr bool is_float(Kind kind) { return format(kind).element != 0; }

// A matrix [out, in] in panels of 16 outputs; `high`, `scales`, `supers` are where these sections start in a panel.
struct Weight {
  Kind kind{};
  int64_t out = 0, in = 0, groups = 0, panels = 0;
  size_t high = 0, scales = 0, supers = 0, panel_bytes = 0;
  int shared_bits = 0;                         // group g has scale g >> shared_bits
  int64_t ahead_panels = 0, ahead_groups = 0;  // kFetchAhead, as that many panels and groups
  const uint8_t* data = nullptr;

  const uint8_t* panel(int64_t index) const { return data + index * panel_bytes; }
  size_t bytes() const { return panels * panel_bytes; }
  // Outputs of a panel that are not padding.
  int valid(int64_t index) const { return out - index * kPanel < kPanel ? static_cast<int>(out - index * kPanel) : kPanel; }
};

inline Weight packed_weight(Kind kind, int64_t out, int64_t in, const uint8_t* data) {
  const auto padded = [](size_t bytes) { return (bytes + 63) / 64 * 64; };
  const Format& f = format(kind);
  Weight w;
  w.kind = kind, w.out = out, w.in = in, w.panels = (out + kPanel - 1) / kPanel, w.data = data;
  if (f.element) {
    w.scales = padded(in * kPanel * f.element), w.shared_bits = f.shared ? f.shared - 1 : 0;
    w.panel_bytes = w.scales + (f.shared ? padded((in / kGroup >> w.shared_bits) * f.scales) : 0);
    return w;
  }
  w.groups = in / kGroup;
  w.high = padded(w.groups * f.low);
  w.scales = w.high + padded(w.groups * f.high);
  w.shared_bits = f.shared ? f.shared - 1 : 0;
  w.supers = w.scales + padded((w.groups >> w.shared_bits) * f.scales);
  w.panel_bytes = w.supers + padded(w.groups / 8 * f.supers);
  const int64_t ahead = kFetchAhead / (f.low + f.high + f.scales);
  w.ahead_panels = w.groups ? ahead / w.groups : 0, w.ahead_groups = w.groups ? ahead % w.groups : 0;
  return w;
}

// One panel of a quantized weight with its numbers a byte each and its scales in float32.
struct Unpacked {
  Mode mode;
  int zero_bits;
  uint8_t* numbers;  // [groups][8 words][16 outputs][4]
  float* scale;      // [groups][16], or [groups][2][16] for Mode::halves
  float* offset;     // [groups][16], for Mode::minimum and shifted
};
constexpr size_t kUnpackedGroupBytes = 512 + 128 + 64;  // of memory that the three need together, a group

inline Unpacked unpacked_in(const Weight& w, void* memory) {
  auto* bytes = static_cast<uint8_t*>(memory);
  auto* scale = reinterpret_cast<float*>(bytes + w.groups * 512);
  return {format(w.kind).mode, format(w.kind).zero_bits, bytes, scale, scale + w.groups * 32};
}

// In plain C++ (packed.cc): one panel unpacked, and one row as floats [in].
void unpack_panel(const Weight& w, int64_t panel, const Unpacked& to);
void decode_row(const Weight& w, int64_t row, float* to);

float half_to_float(uint16_t bits);
// The bits of a half that is 1/256 of a float8_e4m3, whose exponent has one bit less and counts from 7 in place of 15.
constexpr uint16_t half_of_float8(uint8_t code) {
  return static_cast<uint16_t>((code & 0x80) << 8 | (code & 0x7f) << 7);
}
constexpr float kFloat8 = 256;
// Where the scales of the group of input k begin in a panel of such a weight.
inline const uint8_t* float8_scales(const Weight& w, const uint8_t* panel, int64_t k) {
  return panel + w.scales + (k / kGroup >> w.shared_bits) * format(w.kind).scales;
}

}  // namespace slipstream

// dot_vnni_impl.h: dot.h with vpdpbusd, which adds four products of an unsigned and a signed byte
// in 32 bits without saturation.  Included by dot_avxvnni.cpp (256 bits) and dot_vnni.cpp (512
// bits), each of which defines its own registers V in an unnamed namespace.
//
// Inputs are made unsigned: int8 by adding 128; 14 bits as 128 hi + lo - 8192 with hi and lo in
// 0..127, two products.  What the shift adds to each sum is its multiple of the weights' sum.
// Weights lie in panels of 16 outputs: (inputs / 4, 16, 4).
#pragma once
#include "dot.h"

namespace lmzip {

template <class V>
struct VnniDot {
  using Register = typename V::Register;
  static constexpr size_t kPanel = 16;
  static constexpr size_t kRegisters = kPanel / V::kLanes;
  static constexpr size_t kTile = 4;  // rows

  static void pack(const int8_t* rows, size_t outputs, size_t inputs, Input, int8_t* packed) {
    for (size_t panel = 0; panel < outputs; panel += kPanel) {
      for (size_t k = 0; k < inputs; k += 4) {
        for (size_t i = panel; i < panel + kPanel; ++i) {
          for (size_t j = 0; j < 4; ++j) *packed++ = rows[i * inputs + k + j];
        }
      }
    }
  }

  // -> out (size), for 14 bits (2, size): hi, then lo.
  static void prepare(Input input, const void* x, size_t size, uint8_t* out) {
    if (input == Input::kInt8) {
      const auto* p = static_cast<const uint8_t*>(x);
      for (size_t i = 0; i < size; ++i) out[i] = p[i] ^ 0x80;
    } else if (input == Input::kInt14) {
      const auto* p = static_cast<const int16_t*>(x);
      for (size_t i = 0; i < size; ++i) {
        const auto shifted = static_cast<uint16_t>(p[i] + 8192);
        out[i] = static_cast<uint8_t>(shifted >> 7);
        out[size + i] = shifted & 127;
      }
    }
  }

  template <size_t Rows>
  static void add_products(const int8_t* w, const uint8_t* x, size_t inputs,
                           Register (&sums)[Rows][kRegisters]) {
    for (size_t k = 0; k < inputs; k += 4, w += 4 * kPanel) {
      Register weights[kRegisters];
      for (size_t i = 0; i < kRegisters; ++i) weights[i] = V::load(w + 4 * V::kLanes * i);
      for (size_t r = 0; r < Rows; ++r) {
        const Register value = V::broadcast(x + r * inputs + k);
        for (size_t i = 0; i < kRegisters; ++i)
          sums[r][i] = V::add_products(sums[r][i], value, weights[i]);
      }
    }
  }

  // lo: null but for 14 bits.  offset: what was added to each input.
  template <size_t Rows>
  static void tile(const MatrixView& m, size_t panel, const uint8_t* x, const uint8_t* lo,
                   int32_t offset, int32_t* out) {
    const int8_t* w = m.packed + panel * m.inputs;
    Register sums[Rows][kRegisters];
    for (size_t r = 0; r < Rows; ++r) {
      for (size_t i = 0; i < kRegisters; ++i) sums[r][i] = V::zero();
    }
    add_products<Rows>(w, x, m.inputs, sums);
    if (lo != nullptr) {
      for (size_t r = 0; r < Rows; ++r) {
        for (size_t i = 0; i < kRegisters; ++i) sums[r][i] = V::times(sums[r][i], 128);
      }
      add_products<Rows>(w, lo, m.inputs, sums);
    }
    for (size_t i = 0; i < kRegisters; ++i) {
      const Register shift = V::times(V::load(m.row_sums + panel + V::kLanes * i), offset);
      for (size_t r = 0; r < Rows; ++r)
        V::store(out + r * m.outputs + panel + V::kLanes * i, V::sub(sums[r][i], shift));
    }
  }

  static void multiply(const MatrixView& m, const void* x, size_t rows, int32_t* out,
                       uint8_t* scratch) {
    prepare(m.input, x, rows * m.inputs, scratch);
    const auto* ready = m.input == Input::kUint8 ? static_cast<const uint8_t*>(x) : scratch;
    const uint8_t* lo = m.input == Input::kInt14 ? scratch + rows * m.inputs : nullptr;
    const int32_t offset = m.input == Input::kInt8 ? 128 : m.input == Input::kInt14 ? 8192 : 0;
    constexpr decltype(&tile<1>) kTiles[] = {tile<1>, tile<2>, tile<3>, tile<4>};
    for (size_t panel = 0; panel < m.outputs; panel += kPanel) {
      for (size_t row = 0; row < rows; row += kTile) {
        const size_t count = rows - row < kTile ? rows - row : kTile;
        kTiles[count - 1](m, panel, ready + row * m.inputs,
                          lo == nullptr ? nullptr : lo + row * m.inputs, offset,
                          out + row * m.outputs);
      }
    }
  }
};

}  // namespace lmzip

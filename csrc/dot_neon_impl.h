// dot_neon_impl.h: dot.h for AArch64.  Included by dot_neon.cpp (every AArch64) and dot_dotprod.cpp
// (SDOT), each of which defines in an unnamed namespace V how four products are added.
//
// Inputs are made signed bytes: uint8 by taking 128 away; 14 bits as 128 hi + lo with hi in -64..63
// and lo in 0..127, two products.  Weights lie in panels of 16 outputs: (inputs / 4, 16, 4).
#pragma once
#include <arm_neon.h>

#include "dot.h"

namespace lmzip {

template <class V>
struct NeonDot {
  static constexpr size_t kPanel = 16;

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
  static void prepare(Input input, const void* x, size_t size, int8_t* out) {
    if (input == Input::kUint8) {
      const auto* p = static_cast<const uint8_t*>(x);
      for (size_t i = 0; i < size; ++i) out[i] = static_cast<int8_t>(p[i] ^ 0x80);
    } else if (input == Input::kInt14) {
      const auto* p = static_cast<const int16_t*>(x);
      for (size_t i = 0; i < size; ++i) {
        out[i] = static_cast<int8_t>(p[i] >> 7);
        out[size + i] = static_cast<int8_t>(p[i] & 127);
      }
    }
  }

  template <size_t Rows>
  static void add_products(const int8_t* w, const int8_t* x, size_t inputs,
                           typename V::Sum (&sums)[Rows][4]) {
    for (size_t k = 0; k < inputs; k += 4, w += 4 * kPanel) {
      for (size_t r = 0; r < Rows; ++r) {
        int32_t four_bytes;
        __builtin_memcpy(&four_bytes, x + r * inputs + k, 4);
        const int8x16_t value = vreinterpretq_s8_s32(vdupq_n_s32(four_bytes));
        for (size_t i = 0; i < 4; ++i) V::add(sums[r][i], vld1q_s8(w + 16 * i), value);
      }
    }
  }

  template <size_t Rows>
  static void tile(const MatrixView& m, size_t panel, const int8_t* x, const int8_t* lo,
                   int32_t offset, int32_t* out) {
    const int8_t* w = m.packed + panel * m.inputs;
    typename V::Sum sums[Rows][4] = {};
    add_products<Rows>(w, x, m.inputs, sums);
    int32x4_t hi[Rows][4] = {};
    if (lo != nullptr) {
      for (size_t r = 0; r < Rows; ++r) {
        for (size_t i = 0; i < 4; ++i) {
          hi[r][i] = vshlq_n_s32(V::total(sums[r][i]), 7);
          sums[r][i] = typename V::Sum{};
        }
      }
      add_products<Rows>(w, lo, m.inputs, sums);
    }
    for (size_t i = 0; i < 4; ++i) {
      const int32x4_t shift = vmulq_n_s32(vld1q_s32(m.row_sums + panel + 4 * i), offset);
      for (size_t r = 0; r < Rows; ++r) {
        const int32x4_t sum = vaddq_s32(vaddq_s32(V::total(sums[r][i]), hi[r][i]), shift);
        vst1q_s32(out + r * m.stride + panel + 4 * i, sum);
      }
    }
  }

  static void multiply(const MatrixView& m, const void* x, size_t rows, int32_t* out,
                       uint8_t* scratch) {
    auto* prepared = reinterpret_cast<int8_t*>(scratch);
    prepare(m.input, x, rows * m.inputs, prepared);
    const auto* ready = m.input == Input::kInt8 ? static_cast<const int8_t*>(x) : prepared;
    const int8_t* lo = m.input == Input::kInt14 ? prepared + rows * m.inputs : nullptr;
    const int32_t offset = m.input == Input::kUint8 ? 128 : 0;
    for (size_t panel = 0; panel < m.outputs; panel += kPanel) {
      for (size_t row = 0; row < rows; row += 2) {
        const auto run = rows - row < 2 ? tile<1> : tile<2>;
        run(m, panel, ready + row * m.inputs, lo == nullptr ? nullptr : lo + row * m.inputs, offset,
            out + row * m.stride);
      }
    }
  }
};

}  // namespace lmzip

// dot.cpp: the portable product, and the choice.
#include "dot.h"

#include <cstring>

namespace lmzip {
namespace {

void pack(const int8_t* rows, size_t outputs, size_t inputs, Input, int8_t* packed) {
  std::memcpy(packed, rows, outputs * inputs);
}

template <typename T>
void multiply_rows(const MatrixView& m, const T* x, size_t rows, int32_t* out) {
  for (size_t row = 0; row < rows; ++row, x += m.inputs, out += m.stride) {
    const int8_t* w = m.packed;
    for (size_t i = 0; i < m.outputs; ++i, w += m.inputs) {
      int32_t sum = 0;
      for (size_t k = 0; k < m.inputs; ++k) sum += int32_t{w[k]} * int32_t{x[k]};
      out[i] = sum;
    }
  }
}

void multiply(const MatrixView& m, const void* x, size_t rows, int32_t* out, uint8_t*) {
  switch (m.input) {
    case Input::kInt8:
      return multiply_rows(m, static_cast<const int8_t*>(x), rows, out);
    case Input::kUint8:
      return multiply_rows(m, static_cast<const uint8_t*>(x), rows, out);
    case Input::kInt14:
      return multiply_rows(m, static_cast<const int16_t*>(x), rows, out);
  }
}

}  // namespace

const DotKernel kDotPortable = {pack, multiply};

const DotKernel& dot_kernel([[maybe_unused]] Kernel kernel) {
#if defined(__x86_64__)
  if (kernel == Kernel::kAmx) return kDotAmx;
  if (kernel == Kernel::kVnni) return kDotVnni;
  if (kernel == Kernel::kAvxVnni) return kDotAvxVnni;
  if (kernel >= Kernel::kAvx2) return kDotAvx2;
#elif defined(__aarch64__)
  if (kernel >= Kernel::kDotprod) return kDotDotprod;
  if (kernel >= Kernel::kNeon) return kDotNeon;
#endif
  return kDotPortable;
}

}  // namespace lmzip

// dot.cpp: the portable product, and the choice.
#include "dot.h"

#include <cstring>

#include "aligned.h"

namespace lmzip {
namespace {

void pack(const int8_t* rows, size_t outputs, size_t inputs, Input, int8_t* packed) {
  std::memcpy(packed, rows, outputs * inputs);
}

template <typename T>
void multiply_rows(const MatrixView& m, const T* x, size_t rows, int32_t* out) {
  for (size_t row = 0; row < rows; ++row, x += m.inputs) {
    const int8_t* w = m.packed;
    for (size_t i = 0; i < m.outputs; ++i, w += m.inputs) {
      int32_t sum = 0;
      for (size_t k = 0; k < m.inputs; ++k) sum += int32_t{w[k]} * int32_t{x[k]};
      *out++ = sum;
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

// One product with every kind of input, of a shape with a tail of rows, against the portable one.
[[maybe_unused]] bool equals_portable(const DotKernel& kernel) {
  constexpr size_t kRows = 7, kOutputs = 3 * kOutputStep, kInputs = 5 * kInputStep;
  AlignedArray<int8_t> weights(kOutputs * kInputs), packed(kOutputs * kInputs);
  AlignedArray<int32_t> row_sums(kOutputs), expected(kRows * kOutputs), found(kRows * kOutputs);
  AlignedArray<uint8_t> scratch(scratch_bytes(kRows, kInputs));
  AlignedArray<int8_t> x8(kRows * kInputs);
  AlignedArray<int16_t> x14(kRows * kInputs);
  for (size_t i = 0; i < weights.size(); ++i) {
    weights[i] = static_cast<int8_t>(static_cast<int>(i * i * 31 % 255) - 127);
    row_sums[i / kInputs] += weights[i];
  }
  for (size_t i = 0; i < x8.size(); ++i) {
    x8[i] = static_cast<int8_t>(static_cast<int>(i * i * 57 % 255) - 127);
    x14[i] = static_cast<int16_t>(static_cast<int>(i * i * 77 % 16383) - 8191);
  }
  for (const Input input : {Input::kInt8, Input::kUint8, Input::kInt14}) {
    const void* x = input == Input::kInt14 ? static_cast<const void*>(x14.data()) : x8.data();
    MatrixView m = {input, kOutputs, kInputs, weights.data(), row_sums.data()};
    kDotPortable.multiply(m, x, kRows, expected.data(), scratch.data());
    kernel.pack(weights.data(), kOutputs, kInputs, input, packed.data());
    m.packed = packed.data();
    kernel.multiply(m, x, kRows, found.data(), scratch.data());
    if (std::memcmp(expected.data(), found.data(), found.size() * sizeof(int32_t)) != 0)
      return false;
  }
  return true;
}

}  // namespace

const DotKernel kDotPortable = {pack, multiply};

const DotKernel& dot_kernel([[maybe_unused]] Kernel kernel) {
#if defined(__x86_64__)
  if (kernel == Kernel::kVnni) {
    static const bool equal = equals_portable(kDotVnni);
    if (equal) return kDotVnni;
  }
  if (kernel == Kernel::kAvxVnni) {
    static const bool equal = equals_portable(kDotAvxVnni);
    if (equal) return kDotAvxVnni;
  }
  if (kernel >= Kernel::kAvx2) return kDotAvx2;
#elif defined(__aarch64__)
  if (kernel >= Kernel::kDotprod) return kDotDotprod;
  if (kernel >= Kernel::kNeon) return kDotNeon;
#endif
  return kDotPortable;
}

}  // namespace lmzip

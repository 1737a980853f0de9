// dot.h: the hot kernel of the exact engine: int8 weights times small integers, summed in int32.
//
// Weights are packed once, when a model is loaded, in the order that the kernel reads them; the
// model file knows nothing of it.  Every kernel gives the same sums, for sums of integers have no
// order; docs/numerics.md bounds them below 2^31 (partial sums may wrap, which changes nothing).
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu.h"

namespace lmzip {

// What is multiplied by the weights, and the type of its array.
enum class Input {
  kInt8,   // int8_t in [-127, 127]
  kUint8,  // uint8_t
  kInt14,  // int16_t in [-8191, 8191]
};

// Both sides of a matrix are padded with zero weights to multiples of these.
inline constexpr size_t kOutputStep = 16;
inline constexpr size_t kInputStep = 32;

inline constexpr size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

// Plain pointers, for kernels are compiled for instruction sets that others may not have, and must
// share no inline function with them.
struct MatrixView {
  Input input;
  size_t outputs;        // a multiple of kOutputStep
  size_t stride;         // of rows of sums; outputs, or those of the matrix that this is a part of
  size_t inputs;         // a multiple of kInputStep
  const int8_t* packed;  // outputs * inputs bytes on a cache line
  const int32_t* row_sums;  // (outputs): for kernels that shift their input to be unsigned
  bool from_memory;         // the model is larger than caches are: what comes next is fetched ahead
};

struct DotKernel {
  // rows (outputs, inputs) -> packed, of the same size.  Weights lie in [-127, 127].
  void (*pack)(const int8_t* rows, size_t outputs, size_t inputs, Input input, int8_t* packed);

  // x (rows, inputs) of the matrix's input type -> out (rows, outputs), rows being stride apart.
  // scratch: scratch_bytes(rows, inputs) bytes on a cache line, for the kernel's own form of x.
  void (*multiply)(const MatrixView& matrix, const void* x, size_t rows, int32_t* out,
                   uint8_t* scratch);
};

// Enough for every kernel: two bytes an input.
inline constexpr size_t scratch_bytes(size_t rows, size_t inputs) { return 2 * rows * inputs; }

// The best kernel for `kernel`: its own, or that of the next lower level.
const DotKernel& dot_kernel(Kernel kernel);

extern const DotKernel kDotPortable;
#if defined(__x86_64__)
extern const DotKernel kDotAvx2;
extern const DotKernel kDotAvxVnni;
extern const DotKernel kDotVnni;
extern const DotKernel kDotAmx;
#elif defined(__aarch64__)
extern const DotKernel kDotNeon;
extern const DotKernel kDotDotprod;
#endif

}  // namespace lmzip

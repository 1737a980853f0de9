// row_kernels.h: the loops over a whole row, of which distribution.cpp is built.  The portable ones
// are the truth; the others give the same answers sooner and are chosen by row_kernels().
//
// A row is cut into blocks of kRowBlock symbols, the last one shorter.  `prefix` has one entry per
// block, the sum of all weights before it, and one more, the sum of all.
#pragma once
#include <cstddef>
#include <cstdint>

#include "exp2_table.h"

namespace lmzip {

inline constexpr size_t kRowBlock = 32;

// Not finite, or negative (-0.0 included), as unsigned bits of a float32.
inline constexpr uint32_t kFloatMax = 0x7F7FFFFF;
// From this biased exponent of the row's greatest number on, subnormal numbers weigh nothing and
// 2^(156 - exponent) is a normal float: the float kernels rely on both.
inline constexpr uint32_t kMinFastExponent = 32;

// Of a logit that lies d below the greatest.
inline uint32_t logit_weight(uint32_t d) {
  return d >> 10 > 31 ? 0 : kExp2Table[d & 1023] >> (d >> 10);
}

struct RowKernels {
  void (*widen_float16)(const uint16_t* row, size_t n, float* out);   // exact
  void (*widen_bfloat16)(const uint16_t* row, size_t n, float* out);  // exact
  void (*round_float64)(const double* row, size_t n, float* out);     // to nearest, ties to even

  // The greatest bit pattern, as unsigned: above kFloatMax if any number is negative or not finite.
  uint32_t (*float_top)(const float* row, size_t n);
  // top <= kFloatMax is the greatest bit pattern of the row, -0.0 set aside.
  void (*float_prefix)(const float* row, size_t n, uint32_t top, uint64_t* prefix);
  void (*float_weights)(const float* row, size_t n, uint32_t top, uint32_t* weights);

  int32_t (*logit_top)(const int32_t* row, size_t n);
  void (*logit_prefix)(const int32_t* row, size_t n, int32_t top, uint64_t* prefix);
  void (*logit_weights)(const int32_t* row, size_t n, int32_t top, uint32_t* weights);

  // The top bit of the result tells whether any weight is 2^31 or more; prefix is then void.
  uint32_t (*weight_prefix)(const uint32_t* row, size_t n, uint64_t* prefix);
};

// Those of active_kernel().
const RowKernels& row_kernels();

extern const RowKernels kRowKernelsPortable;
#if defined(__x86_64__)
extern const RowKernels kRowKernelsAvx2;
#endif

}  // namespace lmzip

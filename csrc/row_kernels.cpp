// row_kernels.cpp: the portable row kernels, and the choice.
#include "row_kernels.h"

#include <algorithm>
#include <bit>

#include "cpu.h"

namespace lmzip {
namespace {

// Exact: float32 holds every float16.
float from_float16(uint16_t half) {
  const uint32_t sign = uint32_t{half} >> 15 << 31;
  const uint32_t exponent = half >> 10 & 31;
  const uint32_t fraction = half & 1023;
  uint32_t bits = 0;
  if (exponent == 31) {
    bits = 0x7F800000 | fraction << 13;  // infinity, NaN
  } else if (exponent != 0) {
    bits = (exponent + 127 - 15) << 23 | fraction << 13;
  } else if (fraction != 0) {  // subnormal: fraction * 2^-24, normal in float32
    const auto width = static_cast<uint32_t>(std::bit_width(fraction));
    bits = (width + 127 - 25) << 23 | (fraction << (24 - width) & 0x7FFFFF);
  }
  return std::bit_cast<float>(sign | bits);
}

// To nearest, ties to even, by the bits: a processor that flushes subnormal numbers to zero would
// round the smallest ones differently.
float from_float64(double number) {
  const auto bits = std::bit_cast<uint64_t>(number);
  const auto sign = static_cast<uint32_t>(bits >> 63) << 31;
  const auto exponent = static_cast<int>(bits >> 52 & 0x7FF);
  const uint64_t fraction = bits & ((uint64_t{1} << 52) - 1);
  if (exponent == 0x7FF)
    return std::bit_cast<float>(sign | 0x7F800000u | (fraction != 0 ? 1u << 22 : 0));
  // The number is m * 2^(exponent - 1075); a normal float32 keeps 24 bits of it, a subnormal fewer.
  const int float_exponent = exponent - 1023 + 127;
  const int drop = 29 + std::max(0, 1 - float_exponent);
  if (drop > 54) return std::bit_cast<float>(sign);  // below half of the least float32
  const uint64_t m = exponent == 0 ? fraction : fraction | uint64_t{1} << 52;
  const uint64_t half = uint64_t{1} << (drop - 1);
  const uint64_t rounded = (m + half - 1 + (m >> drop & 1)) >> drop;
  // Adding the significand to the exponent's field carries into it where rounding reached a power
  // of 2.
  const uint64_t base = float_exponent > 0 ? static_cast<uint64_t>(float_exponent - 1) << 23 : 0;
  return std::bit_cast<float>(
      sign | static_cast<uint32_t>(std::min<uint64_t>(base + rounded, 0x7F800000)));
}

void widen_float16(const uint16_t* row, size_t n, float* out) {
  for (size_t i = 0; i < n; ++i) out[i] = from_float16(row[i]);
}

void widen_bfloat16(const uint16_t* row, size_t n, float* out) {
  for (size_t i = 0; i < n; ++i) out[i] = std::bit_cast<float>(uint32_t{row[i]} << 16);
}

void round_float64(const double* row, size_t n, float* out) {
  for (size_t i = 0; i < n; ++i) out[i] = from_float64(row[i]);
}

uint32_t float_top(const float* row, size_t n) {
  uint32_t top = 0;
  for (size_t i = 0; i < n; ++i) top = std::max(top, std::bit_cast<uint32_t>(row[i]));
  return top;
}

// The number is m * 2^(e - 150) with m < 2^24, and the greatest one has the exponent e_top: so
// (m << 6) >> (e_top - e) is floor(number * 2^(156 - e_top)).
uint32_t float_weight(float number, uint32_t top) {
  const uint32_t bits = std::bit_cast<uint32_t>(number) & 0x7FFFFFFF;  // -0.0 is 0
  const uint32_t hidden = bits >> 23 != 0 ? 1u << 23 : 0;
  const uint32_t exponent = std::max(bits >> 23, 1u);  // subnormal numbers: 1, no hidden bit
  const uint32_t shift = std::max(top >> 23, 1u) - exponent;
  return shift > 30 ? 0 : ((bits & 0x7FFFFF) | hidden) << 6 >> shift;
}

void float_weights(const float* row, size_t n, uint32_t top, uint32_t* weights) {
  for (size_t i = 0; i < n; ++i) weights[i] = float_weight(row[i], top);
}

int32_t logit_top(const int32_t* row, size_t n) { return *std::max_element(row, row + n); }

void logit_weights(const int32_t* row, size_t n, int32_t top, uint32_t* weights) {
  for (size_t i = 0; i < n; ++i)  // never overflows
    weights[i] = logit_weight(static_cast<uint32_t>(top) - static_cast<uint32_t>(row[i]));
}

// Sums block after block, given the weights of one block at a time.
template <typename BlockWeights>
void prefix_sums(size_t n, uint64_t* prefix, BlockWeights block_weights) {
  uint32_t weights[kRowBlock];
  uint64_t sum = 0;
  for (size_t begin = 0; begin < n; begin += kRowBlock) {
    *prefix++ = sum;
    const size_t size = std::min(kRowBlock, n - begin);
    block_weights(begin, size, weights);
    for (size_t i = 0; i < size; ++i) sum += weights[i];
  }
  *prefix = sum;
}

void float_prefix(const float* row, size_t n, uint32_t top, uint64_t* prefix) {
  prefix_sums(n, prefix, [=](size_t begin, size_t size, uint32_t* weights) {
    float_weights(row + begin, size, top, weights);
  });
}

void logit_prefix(const int32_t* row, size_t n, int32_t top, uint64_t* prefix) {
  prefix_sums(n, prefix, [=](size_t begin, size_t size, uint32_t* weights) {
    logit_weights(row + begin, size, top, weights);
  });
}

uint32_t weight_prefix(const uint32_t* row, size_t n, uint64_t* prefix) {
  uint32_t all = 0;
  prefix_sums(n, prefix, [&](size_t begin, size_t size, uint32_t* weights) {
    for (size_t i = 0; i < size; ++i) {
      weights[i] = row[begin + i];
      all |= weights[i];
    }
  });
  return all;
}

}  // namespace

const RowKernels kRowKernelsPortable = {widen_float16, widen_bfloat16, round_float64, float_top,
                                        float_prefix,  float_weights,  logit_top,     logit_prefix,
                                        logit_weights, weight_prefix};

const RowKernels& row_kernels() {
#if defined(__x86_64__)
  if (active_kernel() >= Kernel::kAvx2) return kRowKernelsAvx2;
#endif
  return kRowKernelsPortable;
}

}  // namespace lmzip

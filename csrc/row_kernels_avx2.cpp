// row_kernels_avx2.cpp: row_kernels.h for AVX2; equal to the portable kernels, which finish what
// does not fill a block.
//
// Floats are weighed by one multiplication: number * 2^(156 - e_top) is exact where it is 1 or
// more, as a power of two changes no digit, and truncation to an integer is the floor.
// kMinFastExponent keeps the factor normal, and makes every number that flush-to-zero modes may
// alter weigh nothing.
#include <immintrin.h>

#include "row_kernels.h"

namespace lmzip {
namespace {

constexpr size_t kStep = 8;  // numbers in a register

__m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// The sum of four 64-bit numbers.
uint64_t sum_of_64(__m256i v) {
  const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_add_epi64(two, _mm_unpackhi_epi64(two, two))));
}

// Eight unsigned 32-bit numbers, added in pairs to four of 64 bits.
__m256i pairs_to_64(__m256i v) {
  return _mm256_add_epi64(_mm256_and_si256(v, _mm256_set1_epi64x(0xFFFFFFFF)),
                          _mm256_srli_epi64(v, 32));
}

uint32_t greatest_unsigned(__m256i v) {
  __m128i m = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4E));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xB1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(m));
}

int32_t greatest_signed(__m256i v) {
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4E));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xB1));
  return _mm_cvtsi128_si32(m);
}

// The conversion of float16 minds no floating-point mode.
void widen_float16(const uint16_t* row, size_t n, float* out) {
  size_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(halves));
  }
  kRowKernelsPortable.widen_float16(row + i, n - i, out + i);
}

void widen_bfloat16(const uint16_t* row, size_t n, float* out) {
  size_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i));
    const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), bits);
  }
  kRowKernelsPortable.widen_bfloat16(row + i, n - i, out + i);
}

// In the processor's default mode, whatever the caller's is: to nearest, nothing flushed to zero.
void round_float64(const double* row, size_t n, float* out) {
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(0x1F80);
  size_t i = 0;
  for (; i + 4 <= n; i += 4) _mm_storeu_ps(out + i, _mm256_cvtpd_ps(_mm256_loadu_pd(row + i)));
  _mm_setcsr(mode);
  kRowKernelsPortable.round_float64(row + i, n - i, out + i);
}

uint32_t float_top(const float* row, size_t n) {
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  size_t i = 0;
  for (; i + kRowBlock <= n; i += kRowBlock) {
    a = _mm256_max_epu32(a, load(row + i));
    b = _mm256_max_epu32(b, load(row + i + 8));
    c = _mm256_max_epu32(c, load(row + i + 16));
    d = _mm256_max_epu32(d, load(row + i + 24));
  }
  const uint32_t top =
      greatest_unsigned(_mm256_max_epu32(_mm256_max_epu32(a, b), _mm256_max_epu32(c, d)));
  const uint32_t rest = kRowKernelsPortable.float_top(row + i, n - i);
  return top > rest ? top : rest;
}

__m256 float_factor(uint32_t top) {
  return _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>((127 + 156 - (top >> 23)) << 23)));
}

__m256i weigh_floats(const float* row, __m256 factor) {
  return _mm256_cvttps_epi32(_mm256_mul_ps(_mm256_loadu_ps(row), factor));
}

void float_prefix(const float* row, size_t n, uint32_t top, uint64_t* prefix) {
  if (top >> 23 < kMinFastExponent) return kRowKernelsPortable.float_prefix(row, n, top, prefix);
  const __m256 factor = float_factor(top);
  uint64_t sum = 0;
  size_t i = 0;
  for (; i + kRowBlock <= n; i += kRowBlock) {
    *prefix++ = sum;
    // A weight is below 2^30, so four fit in 32 bits.
    const __m256i v = _mm256_add_epi32(
        _mm256_add_epi32(weigh_floats(row + i, factor), weigh_floats(row + i + 8, factor)),
        _mm256_add_epi32(weigh_floats(row + i + 16, factor), weigh_floats(row + i + 24, factor)));
    sum += sum_of_64(pairs_to_64(v));
  }
  *prefix = sum;
  if (i == n) return;
  uint64_t rest[2];
  kRowKernelsPortable.float_prefix(row + i, n - i, top, rest);
  prefix[1] = sum + rest[1];
}

void float_weights(const float* row, size_t n, uint32_t top, uint32_t* weights) {
  size_t i = 0;
  if (top >> 23 >= kMinFastExponent) {
    const __m256 factor = float_factor(top);
    for (; i + kStep <= n; i += kStep) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + i), weigh_floats(row + i, factor));
    }
  }
  kRowKernelsPortable.float_weights(row + i, n - i, top, weights + i);
}

int32_t logit_top(const int32_t* row, size_t n) {
  if (n < kStep) return kRowKernelsPortable.logit_top(row, n);
  __m256i a = load(row + n - kStep), b = a;  // the last eight, twice or not
  size_t i = 0;
  for (; i + 2 * kStep <= n; i += 2 * kStep) {
    a = _mm256_max_epi32(a, load(row + i));
    b = _mm256_max_epi32(b, load(row + i + 8));
  }
  if (i + kStep <= n) a = _mm256_max_epi32(a, load(row + i));
  return greatest_signed(_mm256_max_epi32(a, b));
}

// Shifts of 32 and more give 0, as they should.
__m256i weigh_logits(const int32_t* row, __m256i top) {
  const __m256i d = _mm256_sub_epi32(top, load(row));
  const __m256i entry = _mm256_i32gather_epi32(reinterpret_cast<const int*>(kExp2Table),
                                               _mm256_and_si256(d, _mm256_set1_epi32(1023)), 4);
  return _mm256_srlv_epi32(entry, _mm256_srli_epi32(d, 10));
}

void logit_prefix(const int32_t* row, size_t n, int32_t top, uint64_t* prefix) {
  const __m256i tops = _mm256_set1_epi32(top);
  uint64_t sum = 0;
  size_t i = 0;
  for (; i + kRowBlock <= n; i += kRowBlock) {
    *prefix++ = sum;
    // A weight is at most 2^30, so two fit in 32 bits, but not always four.
    const __m256i v =
        _mm256_add_epi32(weigh_logits(row + i, tops), weigh_logits(row + i + 8, tops));
    const __m256i w =
        _mm256_add_epi32(weigh_logits(row + i + 16, tops), weigh_logits(row + i + 24, tops));
    sum += sum_of_64(_mm256_add_epi64(pairs_to_64(v), pairs_to_64(w)));
  }
  *prefix = sum;
  if (i == n) return;
  uint64_t rest[2];
  kRowKernelsPortable.logit_prefix(row + i, n - i, top, rest);
  prefix[1] = sum + rest[1];
}

void logit_weights(const int32_t* row, size_t n, int32_t top, uint32_t* weights) {
  const __m256i tops = _mm256_set1_epi32(top);
  size_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + i), weigh_logits(row + i, tops));
  }
  kRowKernelsPortable.logit_weights(row + i, n - i, top, weights + i);
}

uint32_t weight_prefix(const uint32_t* row, size_t n, uint64_t* prefix) {
  __m256i all = _mm256_setzero_si256();
  uint64_t sum = 0;
  size_t i = 0;
  for (; i + kRowBlock <= n; i += kRowBlock) {
    *prefix++ = sum;
    const __m256i a = load(row + i), b = load(row + i + 8), c = load(row + i + 16),
                  d = load(row + i + 24);
    all = _mm256_or_si256(all, _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d)));
    // Valid weights are below 2^31, so two fit in 32 bits; others are refused by their top bit.
    const __m256i v = pairs_to_64(_mm256_add_epi32(a, b));
    sum += sum_of_64(_mm256_add_epi64(v, pairs_to_64(_mm256_add_epi32(c, d))));
  }
  *prefix = sum;
  const bool any_top_bit = _mm256_movemask_ps(_mm256_castsi256_ps(all)) != 0;
  uint32_t rest_or = 0;
  if (i < n) {
    uint64_t rest[2];
    rest_or = kRowKernelsPortable.weight_prefix(row + i, n - i, rest);
    prefix[1] = sum + rest[1];
  }
  return rest_or | (any_top_bit ? 0x80000000u : 0);
}

}  // namespace

const RowKernels kRowKernelsAvx2 = {widen_float16, widen_bfloat16, round_float64, float_top,
                                    float_prefix,  float_weights,  logit_top,     logit_prefix,
                                    logit_weights, weight_prefix};

}  // namespace lmzip

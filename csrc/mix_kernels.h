// mix_kernels.h: the arithmetic of a logistic mixer, portable and AVX2, equal to the bit.
//
//   dot    sum over i of (input[i] * weight[i]) >> 8, each product shifted by itself
//   train  weight[i] += (input[i] * step + 2^15) >> 16, kept within +-kWeightMax
//
// n is a multiple of 8.  No sum can overflow: |input| <= 2^12 and |weight| < 2^19 make a product
// smaller than 2^31, and at most 64 products of 2^23 each are summed.  |step| < 2^19.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lmzip {

inline constexpr int kWeightMax = (1 << 19) - 1;  // just below 8.0; 65536 is 1.0

struct PortableKernel {
  static int dot(const int32_t* input, const int32_t* weight, size_t n) {
    int32_t sum = 0;
    for (size_t i = 0; i < n; ++i) sum += (input[i] * weight[i]) >> 8;
    return sum;
  }

  static void train(const int32_t* input, int32_t* weight, size_t n, int step) {
    for (size_t i = 0; i < n; ++i) {
      const int32_t moved = weight[i] + ((input[i] * step + (1 << 15)) >> 16);
      weight[i] = std::clamp(moved, -kWeightMax, kWeightMax);
    }
  }
};

#if defined(__x86_64__)
struct Avx2Kernel {
  __attribute__((target("avx2"))) static int dot(const int32_t* input, const int32_t* weight,
                                                 size_t n) {
    __m256i sum = _mm256_setzero_si256();
    for (size_t i = 0; i < n; i += 8) {
      const __m256i product =
          _mm256_mullo_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(input + i)),
                             _mm256_load_si256(reinterpret_cast<const __m256i*>(weight + i)));
      sum = _mm256_add_epi32(sum, _mm256_srai_epi32(product, 8));
    }
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
    return _mm_cvtsi128_si32(half);
  }

  __attribute__((target("avx2"))) static void train(const int32_t* input, int32_t* weight, size_t n,
                                                    int step) {
    const __m256i steps = _mm256_set1_epi32(step);
    const __m256i round = _mm256_set1_epi32(1 << 15);
    const __m256i top = _mm256_set1_epi32(kWeightMax);
    const __m256i bottom = _mm256_set1_epi32(-kWeightMax);
    for (size_t i = 0; i < n; i += 8) {
      auto* w = reinterpret_cast<__m256i*>(weight + i);
      const __m256i product =
          _mm256_mullo_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(input + i)), steps);
      const __m256i delta = _mm256_srai_epi32(_mm256_add_epi32(product, round), 16);
      const __m256i moved = _mm256_add_epi32(_mm256_load_si256(w), delta);
      _mm256_store_si256(w, _mm256_max_epi32(bottom, _mm256_min_epi32(top, moved)));
    }
  }
};
#endif

}  // namespace lmzip

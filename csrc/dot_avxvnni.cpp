// dot_avxvnni.cpp: dot.h for AVX-VNNI, the 256-bit form of processors without AVX-512.
#include <immintrin.h>

#include "dot_vnni_impl.h"

namespace lmzip {
namespace {

struct Ymm {
  using Register = __m256i;
  static constexpr size_t kLanes = 8;
  static constexpr size_t kSums = 8;  // of 16 registers
  static constexpr size_t kRows = 4;
  static Register zero() { return _mm256_setzero_si256(); }
  static Register load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static void store(void* p, Register a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }
  static Register broadcast(const uint8_t* p) {
    int32_t four_bytes;
    __builtin_memcpy(&four_bytes, p, 4);
    return _mm256_set1_epi32(four_bytes);
  }
  static Register add_products(Register sum, Register bytes, Register weights) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(bytes), "x"(weights));  // as dot_vnni.cpp
    return sum;
  }
  static Register times(Register a, int32_t b) {
    return _mm256_mullo_epi32(a, _mm256_set1_epi32(b));
  }
  static Register sub(Register a, Register b) { return _mm256_sub_epi32(a, b); }
};

}  // namespace

const DotKernel kDotAvxVnni = {VnniDot<Ymm>::pack, VnniDot<Ymm>::multiply};

}  // namespace lmzip

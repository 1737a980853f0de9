// dot_vnni.cpp: dot.h for AVX-512 VNNI.
#include <immintrin.h>

#include "dot_vnni_impl.h"

namespace lmzip {
namespace {

struct Zmm {
  using Register = __m512i;
  static constexpr size_t kLanes = 16;
  static constexpr size_t kSums = 16;  // of 32 registers
  static constexpr size_t kRows = 8;
  static Register zero() { return _mm512_setzero_si512(); }
  static Register load(const void* p) { return _mm512_loadu_si512(p); }
  static void store(void* p, Register a) { _mm512_storeu_si512(p, a); }
  static Register broadcast(const uint8_t* p) {
    int32_t four_bytes;
    __builtin_memcpy(&four_bytes, p, 4);
    return _mm512_set1_epi32(four_bytes);
  }
  static Register add_products(Register sum, Register bytes, Register weights) {
    // Not _mm512_dpbusd_epi32: GCC 12 then copies every sum twice a round (a quarter slower).
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(weights));
    return sum;
  }
  static Register times(Register a, int32_t b) {
    return _mm512_mullo_epi32(a, _mm512_set1_epi32(b));
  }
  static Register sub(Register a, Register b) { return _mm512_sub_epi32(a, b); }
};

}  // namespace

const DotKernel kDotVnni = {VnniDot<Zmm>::pack, VnniDot<Zmm>::multiply};

}  // namespace lmzip

// dot_vnni.cpp: dot.h for AVX-512 VNNI.
#include "dot_vnni_impl.h"
#include "vpdpbusd.h"

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
  static Register broadcast(const uint8_t* p) { return lmzip::broadcast(p); }
  static Register add_products(Register sum, Register bytes, Register weights) {
    return lmzip::add_products(sum, bytes, weights);
  }
  static Register times(Register a, int32_t b) {
    return _mm512_mullo_epi32(a, _mm512_set1_epi32(b));
  }
  static Register sub(Register a, Register b) { return _mm512_sub_epi32(a, b); }
};

}  // namespace

const DotKernel kDotVnni = {VnniDot<Zmm>::pack, VnniDot<Zmm>::multiply};

}  // namespace lmzip

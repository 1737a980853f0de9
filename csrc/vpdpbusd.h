// vpdpbusd.h: the instruction of all products of bytes, for files compiled for AVX-512 VNNI; each
// has it to itself, for it must not meet the code of other instruction sets.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace lmzip {
namespace {

// Four bytes, sixteen times.
inline __m512i broadcast(const void* p) {
  int32_t four_bytes;
  __builtin_memcpy(&four_bytes, p, 4);
  return _mm512_set1_epi32(four_bytes);
}

// sum + products of unsigned and signed bytes, four at a time.  Not _mm512_dpbusd_epi32: GCC 12
// does not see that it adds in place, copies every sum twice a round, and runs out of registers.
inline __m512i add_products(__m512i sum, __m512i bytes, __m512i signed_bytes) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(signed_bytes));
  return sum;
}

}  // namespace
}  // namespace lmzip

// llama_stages_vnni.cpp: llama_stages.h for AVX-512 F, BW and VNNI.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the undefined operands inside its own intrinsics for a mistake of ours.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "llama_stages_impl.h"

namespace lmzip {
namespace {

__m512i broadcast(const void* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}

struct Avx512 {
  static constexpr size_t kLanes = 16;
  using Int = __m512i;
  using Float = __m512;

  static Int splat(int32_t a) { return _mm512_set1_epi32(a); }
  static Float splat(float a) { return _mm512_set1_ps(a); }
  static Int load(const int32_t* p) { return _mm512_loadu_si512(p); }
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static Int load_int8(const int8_t* p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Int load_int16(const int16_t* p) {
    return _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store(int32_t* p, Int a) { _mm512_storeu_si512(p, a); }
  static void store(float* p, Float a) { _mm512_storeu_ps(p, a); }
  static void store_int8(int8_t* p, Int a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
  }
  static void store_int16(int16_t* p, Int a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a));
  }

  static Float to_float(Int a) { return _mm512_cvtepi32_ps(a); }
  static Int round(Float a) { return _mm512_cvtps_epi32(a); }
  static Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int sub(Int a, Int b) { return _mm512_sub_epi32(a, b); }
  static Int mul(Int a, Int b) { return _mm512_mullo_epi32(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Int min(Int a, Int b) { return _mm512_min_epi32(a, b); }
  static Int max(Int a, Int b) { return _mm512_max_epi32(a, b); }
  static Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
  static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static Int abs(Int a) { return _mm512_abs_epi32(a); }
  static Float abs(Float a) {
    return _mm512_castsi512_ps(bits(_mm512_castps_si512(a), 0x7FFFFFFF));
  }
  static Int bits(Int a, int32_t mask) { return _mm512_and_si512(a, _mm512_set1_epi32(mask)); }
  template <unsigned kBits>
  static Int shift_right(Int a) {
    return _mm512_srai_epi32(a, kBits);
  }
  static Int shift_right(Int a, Int by) { return _mm512_srlv_epi32(a, by); }
  static Int look_up(const int32_t (&table)[32], Int place) {
    return _mm512_permutex2var_epi32(load(table), place, load(table + 16));
  }
  static Int gather(const uint16_t* table, Int place) {
    return bits(_mm512_i32gather_epi32(place, table, 2), 0xFFFF);
  }
  static int32_t greatest(Int a) { return _mm512_reduce_max_epi32(a); }
  static float greatest(Float a) { return _mm512_reduce_max_ps(a); }
  static int32_t sum(Int a) { return _mm512_reduce_add_epi32(a); }

  // vpdpbusd takes one unsigned side: the keys, 128 added.
  static void scores(const int8_t* keys, const int8_t* query, size_t slots, size_t d,
                     int32_t* out) {
    const __m512i flip = _mm512_set1_epi8(-128);
    __m512i queries[kMaxHeadDim / 4];
    __m512i shift = _mm512_setzero_si512();  // 128 times the sum of the query
    for (size_t c = 0; c < d; c += 4) {
      queries[c / 4] = broadcast(query + c);
      shift = _mm512_dpbusd_epi32(shift, flip, queries[c / 4]);
    }
    for (size_t j = 0; j < slots; j += 16) {
      __m512i even = _mm512_setzero_si512(), odd = even;
      for (size_t c = 0; c < d; c += 8, keys += 128) {
        const __m512i k0 = _mm512_xor_si512(_mm512_loadu_si512(keys), flip);
        const __m512i k1 = _mm512_xor_si512(_mm512_loadu_si512(keys + 64), flip);
        even = _mm512_dpbusd_epi32(even, k0, queries[c / 4]);
        odd = _mm512_dpbusd_epi32(odd, k1, queries[c / 4 + 1]);
      }
      store(out + j, _mm512_sub_epi32(_mm512_add_epi32(even, odd), shift));
    }
  }

  static void average(const int8_t* values, const uint8_t* high, const uint8_t* low, size_t slots,
                      size_t d, int32_t* out) {
    for (size_t c = 0; c < d; c += 32) {
      __m512i h0 = _mm512_setzero_si512(), h1 = h0, l0 = h0, l1 = h0;
      const int8_t* v = values + 4 * c;
      for (size_t j = 0; j < slots; j += 4, v += 4 * d) {
        const __m512i v0 = _mm512_loadu_si512(v), v1 = _mm512_loadu_si512(v + 64);
        const __m512i h = broadcast(high + j), l = broadcast(low + j);
        h0 = _mm512_dpbusd_epi32(h0, h, v0);
        h1 = _mm512_dpbusd_epi32(h1, h, v1);
        l0 = _mm512_dpbusd_epi32(l0, l, v0);
        l1 = _mm512_dpbusd_epi32(l1, l, v1);
      }
      store(out + c, _mm512_add_epi32(_mm512_slli_epi32(h0, 7), l0));
      store(out + c + 16, _mm512_add_epi32(_mm512_slli_epi32(h1, 7), l1));
    }
  }
};

}  // namespace

const LlamaStages kLlamaStagesVnni = LlamaStagesOf<Avx512>::kernels();

}  // namespace lmzip

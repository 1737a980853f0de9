// llama_stages_avx2.cpp: llama_stages.h for AVX2.
#include <immintrin.h>

#include "llama_stages_impl.h"

namespace lmzip {
namespace {

__m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
__m256i broadcast(const void* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}

struct Avx2 {
  static constexpr size_t kLanes = 8;
  using Int = __m256i;
  using Float = __m256;
  struct Long {
    __m256i v;  // four
  };

  static Int splat(int32_t a) { return _mm256_set1_epi32(a); }
  static Float splat(float a) { return _mm256_set1_ps(a); }
  static Int load(const int32_t* p) { return lmzip::load(p); }
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static Int load_int8(const int8_t* p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static Int load_int16(const int16_t* p) {
    return _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store(int32_t* p, Int a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
  static void store(float* p, Float a) { _mm256_storeu_ps(p, a); }
  static __m128i narrow(Int a) {
    return _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  }
  static void store_int8(int8_t* p, Int a) {
    const __m128i v = narrow(a);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(v, v));
  }
  static void store_int16(int16_t* p, Int a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(a));
  }

  static Float to_float(Int a) { return _mm256_cvtepi32_ps(a); }
  static Int round(Float a) { return _mm256_cvtps_epi32(a); }
  static Int add(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int sub(Int a, Int b) { return _mm256_sub_epi32(a, b); }
  static Int mul(Int a, Int b) { return _mm256_mullo_epi32(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Int min(Int a, Int b) { return _mm256_min_epi32(a, b); }
  static Int max(Int a, Int b) { return _mm256_max_epi32(a, b); }
  static Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
  static Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
  static Int abs(Int a) { return _mm256_abs_epi32(a); }
  static Float abs(Float a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static Int bits(Int a, int32_t mask) { return _mm256_and_si256(a, _mm256_set1_epi32(mask)); }
  template <int kBits>
  static Int shift_right(Int a) {
    return _mm256_srai_epi32(a, kBits);
  }
  static Int shift_right(Int a, Int by) { return _mm256_srav_epi32(a, by); }
  static Int look_up(const int32_t (&table)[32], Int place) {
    return _mm256_i32gather_epi32(table, place, 4);
  }
  static Int gather(const uint16_t* table, Int place) {
    return bits(_mm256_i32gather_epi32(reinterpret_cast<const int*>(table), place, 2), 0xFFFF);
  }
  static int32_t greatest(Int a) {
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xB1)));
  }
  static float greatest(Float a) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_shuffle_ps(m, m, 0x4E));
    return _mm_cvtss_f32(_mm_max_ps(m, _mm_shuffle_ps(m, m, 0xB1)));
  }
  static int32_t sum(Int a) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1)));
  }

  static Long zero() { return {_mm256_setzero_si256()}; }
  // vpmuldq multiplies the even numbers; those behind them are moved into their places.
  static Long add_squares(Long sum, Int a) {
    const Int odd = _mm256_srli_epi64(a, 32);
    const __m256i pairs = _mm256_add_epi64(_mm256_mul_epi32(a, a), _mm256_mul_epi32(odd, odd));
    return {_mm256_add_epi64(sum.v, pairs)};
  }
  static int64_t sum(Long a) {
    __m128i s = _mm_add_epi64(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
    return _mm_cvtsi128_si64(_mm_add_epi64(s, _mm_unpackhi_epi64(s, s)));
  }

  // |q| times k with q's sign, as in dot_avx2.cpp: no sum of two products saturates.
  static void scores(const LlamaAttention& view, size_t begin, size_t end, const int8_t* queries,
                     int32_t* u) {
    const size_t d = view.head_dim;
    for (size_t h = 0; h < view.heads; ++h, queries += d, u += view.slots())
      scores(view.keys + begin * d, queries, end - begin, d, u + begin);
  }

  static void scores(const int8_t* keys, const int8_t* query, size_t slots, size_t d,
                     int32_t* out) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (size_t j = 0; j < slots; j += 16) {
      __m256i s0 = _mm256_setzero_si256(), s1 = s0;
      for (size_t c = 0; c < d; c += 4, keys += 64) {
        const __m256i q = broadcast(query + c), magnitude = _mm256_abs_epi8(q);
        const __m256i p0 = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(lmzip::load(keys), q));
        const __m256i p1 =
            _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(lmzip::load(keys + 32), q));
        s0 = _mm256_add_epi32(s0, _mm256_madd_epi16(p0, ones));
        s1 = _mm256_add_epi32(s1, _mm256_madd_epi16(p1, ones));
      }
      store(out + j, s0);
      store(out + j + 8, s1);
    }
  }

  static void average(const LlamaAttention& view, const uint8_t* high, const uint8_t* low,
                      int32_t* o) {
    const size_t slots = view.slots(), d = view.head_dim;
    for (size_t h = 0; h < view.heads; ++h, high += slots, low += slots, o += d)
      average(view.values, high, low, slots, d, o);
  }

  // Values and weights are widened to 16 bits; four slots of a channel give two sums.
  static void average(const int8_t* values, const uint8_t* high, const uint8_t* low, size_t slots,
                      size_t d, int32_t* out) {
    for (size_t c = 0; c < d; c += 8) {
      __m256i s0 = _mm256_setzero_si256(), s1 = s0;  // channels c..c+3, c+4..c+7
      const int8_t* v = values + 4 * c;
      for (size_t j = 0; j < slots; j += 4, v += 4 * d) {
        uint64_t w = 0;
        for (size_t i = 0; i < 4; ++i) {
          const auto weight = static_cast<uint64_t>(high[j + i]) << 7 | low[j + i];
          w |= weight << 16 * i;
        }
        const __m256i weights = _mm256_set1_epi64x(static_cast<long long>(w));
        const __m256i bytes = lmzip::load(v);
        s0 = _mm256_add_epi32(
            s0, _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm256_castsi256_si128(bytes)), weights));
        s1 = _mm256_add_epi32(
            s1,
            _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm256_extracti128_si256(bytes, 1)), weights));
      }
      const __m256i pairs = _mm256_hadd_epi32(s0, s1);  // channels 0 1 4 5 2 3 6 7
      store(out + c, _mm256_permute4x64_epi64(pairs, 0xD8));
    }
  }
};

}  // namespace

const LlamaStages kLlamaStagesAvx2 = LlamaStagesOf<Avx2>::kernels();

}  // namespace lmzip

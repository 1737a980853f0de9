// stages_avx2.cpp: stages.h for AVX2.
#include <immintrin.h>

#include "stages_impl.h"

namespace lmzip {
namespace {

struct Avx2 {
  static constexpr size_t kLanes = 8;
  using Int = __m256i;
  using Float = __m256;

  static Int splat(int32_t a) { return _mm256_set1_epi32(a); }
  static Float splat(float a) { return _mm256_set1_ps(a); }
  static Int load(const int32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static Int load_int8(const int8_t* p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static void store(void* p, Int a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }

  // Packing works in 128-bit halves: four packed registers come out as eight groups of four numbers
  // in the order a0 b0 c0 d0 a1 b1 c1 d1, which one permutation of groups puts right.
  static Int in_order(Int packed) {
    return _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }
  static void store_int8(int8_t* p, const Int (&v)[4]) {
    const Int low = _mm256_packs_epi32(v[0], v[1]), high = _mm256_packs_epi32(v[2], v[3]);
    store(p, in_order(_mm256_packs_epi16(low, high)));
  }
  static void store_uint8(uint8_t* p, const Int (&v)[4]) {
    const Int low = _mm256_packs_epi32(v[0], v[1]), high = _mm256_packs_epi32(v[2], v[3]);
    store(p, in_order(_mm256_packus_epi16(low, high)));
  }
  static void store_int8(int8_t* p, Int a) {
    const Int packed = _mm256_packs_epi16(_mm256_packs_epi32(a, a), _mm256_setzero_si256());
    const __m128i eight =
        _mm_unpacklo_epi32(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), eight);
  }
  static void store_int16(int16_t* p, Int a, Int b) {
    store(p, _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8));
  }
  static void store_int16(int16_t* p, const Int (&v)[4]) {
    store_int16(p, v[0], v[1]), store_int16(p + 16, v[2], v[3]);
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
  static Int shift_left(Int a, int32_t bits) {
    return _mm256_sll_epi32(a, _mm_cvtsi32_si128(bits));
  }
  // a and b fit in 16 bits.
  static Int add_squares(Int sum, Int a, Int b) {
    const Int pair = _mm256_packs_epi32(a, b);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pair, pair));
  }
  static int32_t greatest(Int a) {
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4E));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xB1));
    return _mm_cvtsi128_si32(m);
  }
  // The sum fits in 32 bits.
  static int64_t sum(Int a) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1));
    return _mm_cvtsi128_si32(s);
  }
  static float sqrt(float a) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(a))); }
};

using Avx2Stages = Stages<Avx2>;

__m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
__m256i broadcast(const void* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}
__m256i widen(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// Scores of one query with 16 slots at a time; slots past the last get garbage.  As in
// dot_avx2.cpp, |q| times k with q's sign: no sum of two products saturates.  Returns their maximum
// over slots.
int32_t score_all(const AttentionView& view, const int8_t* query, int32_t* scores) {
  int8_t words[2 * 128];  // four channels of q, their magnitudes, and so on
  for (size_t c = 0; c < view.head_size; c += 8) {
    const __m128i q = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(query + c));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(words + 2 * c),
                     _mm_unpacklo_epi32(q, _mm_abs_epi8(q)));
  }
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i greatest = _mm256_set1_epi32(INT32_MIN);
  const size_t block = 8 * view.head_size;
  for (size_t j = 0; j < view.slots; j += kSlotStep) {
    const int8_t* k0 = view.keys + j / 8 * block;
    const int8_t* k1 = k0 + block;
    __m256i s0 = _mm256_setzero_si256(), s1 = s0;
    for (size_t c = 0; c < view.head_size; c += 4) {
      const __m256i q = broadcast(words + 2 * c), magnitude = broadcast(words + 2 * c + 4);
      const __m256i p0 = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(load(k0 + 8 * c), q));
      const __m256i p1 = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(load(k1 + 8 * c), q));
      s0 = _mm256_add_epi32(s0, _mm256_madd_epi16(p0, ones));
      s1 = _mm256_add_epi32(s1, _mm256_madd_epi16(p1, ones));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(scores + j), s0);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(scores + j + 8), s1);
    if (j + kSlotStep <= view.slots)
      greatest = _mm256_max_epi32(greatest, _mm256_max_epi32(s0, s1));
  }
  int32_t m = Avx2::greatest(greatest);
  for (size_t j = view.slots / kSlotStep * kSlotStep; j < view.slots; ++j)
    m = scores[j] > m ? scores[j] : m;
  return m;
}

// e_j of eight slots.
__m256i exponentials(const int32_t* scores, __m256i m, __m256i softmax) {
  const __m256i table = _mm256_broadcastsi128_si256(_mm_setr_epi8(
      -1, -12, -22, -32, -42, -51, -59, -68, -76, -83, -91, -98, -104, -111, -117, -123));
  const __m256i gap =
      _mm256_min_epi32(_mm256_sub_epi32(m, Avx2::load(scores)), _mm256_set1_epi32((1 << 19) - 1));
  const __m256i a = _mm256_srli_epi32(_mm256_mullo_epi32(gap, softmax), 16);
  // A set top bit makes vpshufb give zero: the upper three bytes of each lane.
  const __m256i index = _mm256_or_si256(_mm256_and_si256(a, _mm256_set1_epi32(15)),
                                        _mm256_set1_epi32(static_cast<int32_t>(0x80808000)));
  // a >= 128 shifts all eight bits out.
  return _mm256_srlv_epi32(_mm256_shuffle_epi8(table, index), _mm256_srli_epi32(a, 4));
}

// All e_j as int16, zero past the last slot; returns their sum.
int32_t weigh_all(int32_t* scores, size_t slots, int32_t m, int32_t softmax, int16_t* e) {
  const size_t whole = slots / kSlotStep * kSlotStep;
  const __m256i top = _mm256_set1_epi32(m), factor = _mm256_set1_epi32(softmax);
  __m256i sum = _mm256_setzero_si256();
  for (size_t j = 0; j < slots; j += kSlotStep) {
    __m256i e0 = exponentials(scores + j, top, factor);
    __m256i e1 = exponentials(scores + j + 8, top, factor);
    if (j == whole) {
      const __m256i left = _mm256_set1_epi32(static_cast<int32_t>(slots - whole));
      const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
      e0 = _mm256_and_si256(e0, _mm256_cmpgt_epi32(left, lane));
      e1 = _mm256_and_si256(e1,
                            _mm256_cmpgt_epi32(left, _mm256_add_epi32(lane, _mm256_set1_epi32(8))));
    }
    sum = _mm256_add_epi32(sum, _mm256_add_epi32(e0, e1));
    Avx2::store_int16(e + j, e0, e1);
  }
  return static_cast<int32_t>(Avx2::sum(sum));
}

// o of Heads queries, 8 * Registers channels of the values.  e: (Heads, stride).
template <size_t Heads, size_t Registers>
void add_values(const int8_t* values, size_t value_size, size_t slots, const int16_t* e,
                size_t stride, int32_t* o, size_t o_stride) {
  __m256i sums[Heads][Registers];
  for (auto& head : sums) {
    for (auto& sum : head) sum = _mm256_setzero_si256();
  }
  for (size_t j = 0; j < slots; j += 2, values += 2 * value_size) {
    __m256i weight[Heads];
    for (size_t h = 0; h < Heads; ++h) weight[h] = broadcast(e + h * stride + j);
    for (size_t i = 0; i < Registers; ++i) {
      const __m256i v = widen(values + 16 * i);
      for (size_t h = 0; h < Heads; ++h)
        sums[h][i] = _mm256_add_epi32(sums[h][i], _mm256_madd_epi16(v, weight[h]));
    }
  }
  for (size_t h = 0; h < Heads; ++h) {
    for (size_t i = 0; i < Registers; ++i) Avx2::store(o + h * o_stride + 8 * i, sums[h][i]);
  }
}

template <size_t Heads>
void add_all_values(const AttentionView& view, const int16_t* e, size_t stride, int32_t* o) {
  size_t c = 0;
  for (; c + 32 <= view.value_size; c += 32) {
    add_values<Heads, 4>(view.values + 2 * c, view.value_size, view.slots, e, stride, o + c,
                         view.value_size);
  }
  for (; c < view.value_size; c += 16) {
    add_values<Heads, 2>(view.values + 2 * c, view.value_size, view.slots, e, stride, o + c,
                         view.value_size);
  }
}

// Queries in pairs, so that a value that has been loaded is used twice.
void attend(const AttentionView& view, const int8_t* queries, int32_t* scores, int32_t* p) {
  const size_t padded = (view.slots + kSlotStep - 1) / kSlotStep * kSlotStep;
  auto* e = reinterpret_cast<int16_t*>(scores + padded);
  for (size_t h = 0; h < view.group; h += 2) {
    const size_t heads = view.group - h < 2 ? 1 : 2;
    int32_t normalizer[2];
    for (size_t i = 0; i < heads; ++i) {
      const int32_t m = score_all(view, queries + (h + i) * view.head_size, scores);
      normalizer[i] = weigh_all(scores, view.slots, m, view.softmax[h + i], e + i * padded);
    }
    int32_t o[2 * 128];
    if (heads == 2) {
      add_all_values<2>(view, e, padded, o);
    } else {
      add_all_values<1>(view, e, padded, o);
    }
    for (size_t i = 0; i < heads; ++i) {
      Avx2Stages::average(o + i * view.value_size, normalizer[i], view.value_size,
                          p + (h + i) * view.value_size);
    }
  }
}

}  // namespace

const StageKernels kStagesAvx2 = Avx2Stages::kernels(8, 2, attend);

}  // namespace lmzip

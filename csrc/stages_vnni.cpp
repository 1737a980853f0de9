// stages_vnni.cpp: stages.h for AVX-512 VNNI.
//
// vpdpbusd adds products of an unsigned and a signed byte, four at a time.  In scores the keys are
// made unsigned by adding 128: that adds 128 times the query's sum to each score of a query, and
// only differences between them count.  In the averages the exponentials are unsigned as they are.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the undefined operands inside its own intrinsics for a mistake of ours.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "stages_impl.h"
#include "vpdpbusd.h"

namespace lmzip {
namespace {

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
  static void store(void* p, Int a) { _mm512_storeu_si512(p, a); }
  static void store_int8(void* p, Int a) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
  }
  static void store_int8(int8_t* p, const Int (&v)[2]) {
    store_int8(p, v[0]), store_int8(p + 16, v[1]);
  }
  static void store_uint8(uint8_t* p, const Int (&v)[2]) {
    store_int8(p, v[0]), store_int8(p + 16, v[1]);
  }
  static void store_int16(int16_t* p, const Int (&v)[2]) {
    for (size_t i = 0; i < 2; ++i)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 16 * i), _mm512_cvtepi32_epi16(v[i]));
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
  static Int shift_left(Int a, int32_t bits) {
    return _mm512_sll_epi32(a, _mm_cvtsi32_si128(bits));
  }
  // a and b fit in 16 bits.
  static Int add_squares(Int sum, Int a, Int b) {
    const Int pair = _mm512_packs_epi32(a, b);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pair, pair));
  }
  static int32_t greatest(Int a) { return _mm512_reduce_max_epi32(a); }
  // The sum fits in 32 bits.
  static int64_t sum(Int a) { return _mm512_reduce_add_epi32(a); }
  static float sqrt(float a) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(a))); }
};

using VnniStages = Stages<Avx512>;

__m512i load(const void* p) { return _mm512_loadu_si512(p); }

// The lanes of a vector of slots j .. j + 15 that are below `slots`.
__mmask16 in_use(size_t slots, size_t j) {
  return static_cast<__mmask16>(slots - j >= 16 ? 0xFFFF : (1u << (slots - j)) - 1);
}

// Scores of `Heads` queries, 16 slots at a time, into scores (Heads, stride); -> their maxima over
// the slots in use.
template <size_t Heads>
void score_all(const AttentionView& view, const int8_t* queries, int32_t* scores, size_t stride,
               int32_t (&m)[Heads]) {
  const __m512i top_bits = _mm512_set1_epi8(static_cast<char>(0x80));
  __m512i greatest[Heads];
  for (auto& g : greatest) g = _mm512_set1_epi32(INT32_MIN);
  for (size_t j = 0; j < view.slots; j += kSlotStep) {
    const int8_t* keys = view.keys + j * view.head_size;
    __m512i sums[Heads];
    for (auto& sum : sums) sum = _mm512_setzero_si512();
    for (size_t c = 0; c < view.head_size; c += 4) {
      const __m512i k = _mm512_xor_si512(load(keys + kSlotStep * c), top_bits);
      for (size_t h = 0; h < Heads; ++h)
        sums[h] = add_products(sums[h], k, broadcast(queries + h * view.head_size + c));
    }
    const __mmask16 used = in_use(view.slots, j);
    for (size_t h = 0; h < Heads; ++h) {
      Avx512::store(scores + h * stride + j, sums[h]);
      greatest[h] = _mm512_mask_max_epi32(greatest[h], used, greatest[h], sums[h]);
    }
  }
  for (size_t h = 0; h < Heads; ++h) m[h] = Avx512::greatest(greatest[h]);
}

// e_j of 16 slots.
__m512i exponentials(__m512i scores, __m512i m, __m512i softmax) {
  const __m512i table = _mm512_setr_epi32(255, 244, 234, 224, 214, 205, 197, 188, 180, 173, 165,
                                          158, 152, 145, 139, 133);
  const __m512i gap =
      _mm512_min_epi32(_mm512_sub_epi32(m, scores), _mm512_set1_epi32((1 << 19) - 1));
  const __m512i a = _mm512_srli_epi32(_mm512_mullo_epi32(gap, softmax), 16);
  // vpermd looks at the lowest four bits of an index only; a >= 128 shifts all eight bits out.
  return _mm512_srlv_epi32(_mm512_permutexvar_epi32(a, table), _mm512_srli_epi32(a, 4));
}

// All e_j as bytes, zero past the last slot; returns their sum.
int32_t weigh_all(const int32_t* scores, size_t slots, int32_t m, int32_t softmax, uint8_t* e) {
  const __m512i top = _mm512_set1_epi32(m), factor = _mm512_set1_epi32(softmax);
  __m512i sum = _mm512_setzero_si512();
  for (size_t j = 0; j < slots; j += kSlotStep) {
    const __m512i weights = _mm512_maskz_mov_epi32(
        in_use(slots, j), exponentials(Avx512::load(scores + j), top, factor));
    sum = _mm512_add_epi32(sum, weights);
    Avx512::store_int8(e + j, weights);
  }
  return static_cast<int32_t>(Avx512::sum(sum));
}

// o (Heads, value_size) of 16 * Registers channels.  e: (Heads, stride).  Two sums a number, for
// slots of even and odd fours: more chains than the latency of vpdpbusd.
template <size_t Heads, size_t Registers>
void add_values(const AttentionView& view, const int8_t* values, const uint8_t* e, size_t stride,
                int32_t* o) {
  __m512i sums[2][Heads][Registers];
  for (auto& part : sums) {
    for (auto& head : part) {
      for (auto& sum : head) sum = _mm512_setzero_si512();
    }
  }
  for (size_t j = 0; j < view.slots; j += 8) {
    for (size_t part = 0; part < 2; ++part, values += 4 * view.value_size) {
      for (size_t h = 0; h < Heads; ++h) {
        const __m512i weights = broadcast(e + h * stride + j + 4 * part);
        for (size_t i = 0; i < Registers; ++i) {
          sums[part][h][i] = add_products(sums[part][h][i], weights, load(values + 64 * i));
        }
      }
    }
  }
  for (size_t h = 0; h < Heads; ++h) {
    for (size_t i = 0; i < Registers; ++i) {
      Avx512::store(o + h * view.value_size + 16 * i,
                    _mm512_add_epi32(sums[0][h][i], sums[1][h][i]));
    }
  }
}

template <size_t Heads>
void attend_heads(const AttentionView& view, size_t h, const int8_t* queries, int32_t* scores,
                  int32_t* p) {
  const size_t padded = (view.slots + kSlotStep - 1) / kSlotStep * kSlotStep;
  uint8_t e[Heads * 4096];
  int32_t m[Heads], normalizer[Heads], o[Heads * 128];
  score_all<Heads>(view, queries + h * view.head_size, scores, padded, m);
  for (size_t i = 0; i < Heads; ++i) {
    normalizer[i] =
        weigh_all(scores + i * padded, view.slots, m[i], view.softmax[h + i], e + i * padded);
  }
  size_t c = 0;
  for (; c + 32 <= view.value_size; c += 32)
    add_values<Heads, 2>(view, view.values + 4 * c, e, padded, o + c);
  if (c < view.value_size) add_values<Heads, 1>(view, view.values + 4 * c, e, padded, o + c);
  for (size_t i = 0; i < Heads; ++i) {
    VnniStages::average(o + i * view.value_size, normalizer[i], view.value_size,
                        p + (h + i) * view.value_size);
  }
}

// Queries in pairs, so that a key or value that has been loaded is used twice.
void attend(const AttentionView& view, const int8_t* queries, int32_t* scores, int32_t* p) {
  size_t h = 0;
  for (; h + 2 <= view.group; h += 2) attend_heads<2>(view, h, queries, scores, p);
  if (h < view.group) attend_heads<1>(view, h, queries, scores, p);
}

}  // namespace

const StageKernels kStagesVnni = VnniStages::kernels(kSlotStep, 4, attend);

}  // namespace lmzip

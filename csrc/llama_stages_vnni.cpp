// llama_stages_vnni.cpp: llama_stages.h for AVX-512 F, BW and VNNI.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the undefined operands inside its own intrinsics for a mistake of ours.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "llama_stages_impl.h"
#include "vpdpbusd.h"

namespace lmzip {
namespace {

// Into the level 2 cache.  A prefetch of what nobody may read does nothing.
void fetch(const int8_t* p) { __builtin_prefetch(p, 0, 2); }

struct Avx512 {
  static constexpr size_t kLanes = 16;
  using Int = __m512i;
  using Float = __m512;
  struct Long {
    __m512i v;  // eight
  };

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
  static Int shift_right(Int a, Int by) { return _mm512_srav_epi32(a, by); }
  static Int look_up(const int32_t (&table)[32], Int place) {
    return _mm512_permutex2var_epi32(load(table), place, load(table + 16));
  }
  static Int gather(const uint16_t* table, Int place) {
    return bits(_mm512_i32gather_epi32(place, table, 2), 0xFFFF);
  }
  static int32_t greatest(Int a) { return _mm512_reduce_max_epi32(a); }
  static float greatest(Float a) { return _mm512_reduce_max_ps(a); }
  static int32_t sum(Int a) { return _mm512_reduce_add_epi32(a); }

  static Long zero() { return {_mm512_setzero_si512()}; }
  // vpmuldq multiplies the even numbers; those behind them are moved into their places.
  static Long add_squares(Long sum, Int a) {
    const Int odd = _mm512_srli_epi64(a, 32);
    const __m512i pairs = _mm512_add_epi64(_mm512_mul_epi32(a, a), _mm512_mul_epi32(odd, odd));
    return {_mm512_add_epi64(sum.v, pairs)};
  }
  static int64_t sum(Long a) { return _mm512_reduce_add_epi64(a.v); }

  // While keys are read, values are fetched, and then the keys that come after them: into the level
  // 2 cache, for as many lines at once as level 1 may wait for would be too few.

  // vpdpbusd takes one unsigned side: the keys, 128 added.  Two sums a head, so that a single one
  // does not wait for its last product.
  template <size_t Heads>
  static void scores_of(const LlamaAttention& view, size_t begin, size_t end, const int8_t* queries,
                        int32_t* u) {
    const __m512i flip = _mm512_set1_epi8(-128);
    const size_t slots = view.slots(), d = view.head_dim;
    const int8_t *keys = view.keys + begin * d, *ahead = view.values + begin * d;
    __m512i shift[Heads];  // 128 times the sum of the query
    for (size_t h = 0; h < Heads; ++h) {
      shift[h] = _mm512_setzero_si512();
      for (size_t c = 0; c < d; c += 4)
        shift[h] = add_products(shift[h], flip, broadcast(queries + h * d + c));
    }
    for (size_t j = begin; j < end; j += 16) {
      __m512i even[Heads], odd[Heads];
      for (size_t h = 0; h < Heads; ++h) even[h] = odd[h] = _mm512_setzero_si512();
      for (size_t c = 0; c < d; c += 8, keys += 128, ahead += 128) {
        fetch(ahead);
        fetch(ahead + 64);
        const __m512i k0 = _mm512_xor_si512(_mm512_loadu_si512(keys), flip);
        const __m512i k1 = _mm512_xor_si512(_mm512_loadu_si512(keys + 64), flip);
        for (size_t h = 0; h < Heads; ++h) {
          const int8_t* q = queries + h * d + c;
          even[h] = add_products(even[h], k0, broadcast(q));
          odd[h] = add_products(odd[h], k1, broadcast(q + 4));
        }
      }
      for (size_t h = 0; h < Heads; ++h)
        store(u + h * slots + j, _mm512_sub_epi32(_mm512_add_epi32(even[h], odd[h]), shift[h]));
    }
  }

  static void scores(const LlamaAttention& view, size_t begin, size_t end, const int8_t* queries,
                     int32_t* u) {
    static_assert(kLlamaHeadsTogether == 4);
    constexpr decltype(&scores_of<1>) kOf[] = {scores_of<1>, scores_of<2>, scores_of<3>,
                                               scores_of<4>};
    kOf[view.heads - 1](view, begin, end, queries, u);
  }

  // 16 * Registers channels, c and those behind.
  template <size_t Heads, size_t Registers>
  static void average_of(const LlamaAttention& view, size_t c, const uint8_t* high,
                         const uint8_t* low, int32_t* o) {
    const size_t slots = view.slots(), d = view.head_dim;
    const int8_t *values = view.values + 4 * c, *ahead = view.next + 4 * c;
    __m512i h[Heads][Registers], l[Heads][Registers];
    for (size_t i = 0; i < Heads; ++i) {
      for (size_t r = 0; r < Registers; ++r) h[i][r] = l[i][r] = _mm512_setzero_si512();
    }
    for (size_t j = 0; j < slots; j += 4, values += 4 * d, ahead += 4 * d) {
      __m512i v[Registers];
      for (size_t r = 0; r < Registers; ++r) {
        fetch(ahead + 64 * r);
        v[r] = _mm512_loadu_si512(values + 64 * r);
      }
      for (size_t i = 0; i < Heads; ++i) {
        const __m512i a = broadcast(high + i * slots + j), b = broadcast(low + i * slots + j);
        for (size_t r = 0; r < Registers; ++r) {
          h[i][r] = add_products(h[i][r], a, v[r]);
          l[i][r] = add_products(l[i][r], b, v[r]);
        }
      }
    }
    for (size_t i = 0; i < Heads; ++i) {
      for (size_t r = 0; r < Registers; ++r) {
        const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(h[i][r], 7), l[i][r]);
        store(o + i * d + c + 16 * r, sum);
      }
    }
  }

  // 64 channels of three heads have as many sums as there are registers for.
  static void average(const LlamaAttention& view, const uint8_t* high, const uint8_t* low,
                      int32_t* o) {
    constexpr decltype(&average_of<1, 2>) kOf[][2] = {{average_of<1, 2>, average_of<1, 4>},
                                                      {average_of<2, 2>, average_of<2, 4>},
                                                      {average_of<3, 2>, average_of<3, 4>}};
    const size_t slots = view.slots(), d = view.head_dim;
    for (size_t first = 0; first < view.heads;) {
      const size_t heads = view.heads == 4 ? 2 : view.heads;
      for (size_t c = 0; c < d;) {
        const bool wide = d - c >= 64;
        kOf[heads - 1][wide](view, c, high + first * slots, low + first * slots, o + first * d);
        c += wide ? 64 : 32;
      }
      first += heads;
    }
  }
};

}  // namespace

const LlamaStages kLlamaStagesVnni = LlamaStagesOf<Avx512>::kernels();

}  // namespace lmzip

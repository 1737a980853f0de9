// mix_kernels.h: the arithmetic of the logistic mixer, portable and AVX2, equal to the bit.
//
//   gather  the input pairs of cells and of what else there is -> inputs, and the cells beside them
//   dot     for each set the sum over its pairs of (x[0] w[0] + x[1] w[1]) >> 5, then >> 8, limited
//   mix     the outputs of the sets by the final weights
//   train   w += (x * step + 2^14) >> 15, kept within 16 bits
//   learn   the cells of the slots, and their input pairs anew
//   groups  the sums of each 16 of 256 weights, without their lowest bits
//   nodes   from the sums at the 16 leaves of a nibble the stretched probability of each node
//
// Inputs are within 12 bits and a sign, weights within 15: a pair is below 2^28, the sum of 64
// shifted ones below 2^29.  |step| < 2^14.
#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "adaptive_map.h"

namespace lmzip {

inline constexpr int kWeightBits = 13;                 // of 1.0: weights are within +-4
inline constexpr int kFinalWeightMax = (1 << 19) - 1;  // just below 8.0; 65536 is 1.0
inline constexpr size_t kMaxSets = 8;
// Of the network's weights: what is below says nothing of 22 bits.
inline constexpr int kWeightShift = 10;

// What goes into the mixer for one bit, from kSlots cells and kExtra other pairs.
template <size_t kSlots_, size_t kExtra_>
struct MixInputs {
  static constexpr size_t kSlots = kSlots_, kExtra = kExtra_;
  static constexpr size_t kPairs = (kSlots + kExtra + 7) / 8 * 8;
  static constexpr size_t kInputs = 2 * kPairs;

  std::array<MixerCell*, kSlots> cells{};             // where the slots' cells are
  std::array<InputPair, kExtra> extra{};              // of what has no cell
  alignas(32) std::array<InputPair, kPairs> pairs{};  // gathered: cells, extra, zeros
  alignas(32)
      std::array<uint32_t, kPairs> learned{};  // the cells, for vectors; of no use beyond kSlots
};

struct PortableKernel {
  template <class Inputs>
  static void gather(Inputs& inputs) {
    for (size_t i = 0; i < Inputs::kSlots; ++i) inputs.pairs[i] = inputs.cells[i]->inputs;
    std::copy_n(inputs.extra.begin(), Inputs::kExtra, inputs.pairs.begin() + Inputs::kSlots);
  }

  template <size_t kSets, class Inputs>
  static void dot(const Inputs& inputs, const std::array<int16_t*, kSets>& weights,
                  std::array<int32_t, kMaxSets>& outputs) {
    for (size_t s = 0; s < kSets; ++s) {
      int32_t sum = 0;
      for (size_t i = 0; i < Inputs::kPairs; ++i) {
        sum += (inputs.pairs[i].stretched * weights[s][2 * i] +
                inputs.pairs[i].linear * weights[s][2 * i + 1]) >>
               (kWeightBits - 8);
      }
      outputs[s] = clamp_stretch(sum >> 8);
    }
  }

  // Outputs and weights beyond the sets are 0.
  static int mix(const std::array<int32_t, kMaxSets>& outputs, const int32_t* weights) {
    int sum = 0;
    for (size_t s = 0; s < kMaxSets; ++s) sum += (outputs[s] * weights[s]) >> 8;
    return clamp_stretch(sum >> 8);
  }

  template <class Inputs>
  static void train(const Inputs& inputs, int16_t* weights, int step) {
    const auto move = [step](int16_t& weight, int input) {
      weight = static_cast<int16_t>(
          std::clamp(weight + round_product(input, step), INT16_MIN, INT16_MAX));
    };
    for (size_t i = 0; i < Inputs::kPairs; ++i) {
      move(weights[2 * i], inputs.pairs[i].stretched);
      move(weights[2 * i + 1], inputs.pairs[i].linear);
    }
  }

  static void train_final(const std::array<int32_t, kMaxSets>& outputs, int32_t* weights,
                          int step) {
    for (size_t s = 0; s < kMaxSets; ++s) {
      weights[s] = std::clamp(weights[s] + ((outputs[s] * step + (1 << 15)) >> 16),
                              -kFinalWeightMax, kFinalWeightMax);
    }
  }

  template <class Inputs>
  static void learn(Inputs& inputs, int bit, uint32_t limit) {
    for (MixerCell* cell : inputs.cells) cell->learn(bit, limit);
  }

  static void groups(const uint32_t* weights, uint32_t* sums) {
    for (size_t i = 0; i < 16; ++i) {
      sums[i] = 0;
      for (size_t j = 0; j < 16; ++j) sums[i] += weights[16 * i + j] >> kWeightShift;
    }
  }

  // sums: (32), [16] to [31] given, those of the nodes are filled in.
  static void nodes(std::array<uint32_t, 32>& sums, std::array<int32_t, 16>& stretched) {
    const int shift = sum_nodes(sums);
    for (size_t n = 0; n < 16; ++n) {
      stretched[n] =
          stretch_ratio(2 * (sums[2 * n + 1] >> shift) + 1, 2 * (sums[2 * n] >> shift) + 1);
    }
  }

  // Returns by how much sums are shifted to have 22 bits, as stretch_ratio() wants.  [0], of no
  // node, becomes 0.
  static int sum_nodes(std::array<uint32_t, 32>& sums) {
    for (size_t n = 15; n > 0; --n) sums[n] = sums[2 * n] + sums[2 * n + 1];
    sums[0] = 0;
    return std::max(0, static_cast<int>(std::bit_width(sums[1])) - 22);
  }
};

#if defined(__x86_64__)
#define LMZIP_AVX2 __attribute__((target("avx2"))) static
struct Avx2Kernel {
  static_assert(sizeof(MixerCell) == 8 && sizeof(InputPair) == 4);

  template <class Inputs>
  LMZIP_AVX2 void gather(Inputs& inputs) {
    for (size_t v = 0; v < Inputs::kPairs; v += 8) {
      // In each half the first two and the last two of four, so that the shuffles leave the order.
      const __m256i a = four<Inputs>(inputs, v, v + 1, v + 4, v + 5);
      const __m256i b = four<Inputs>(inputs, v + 2, v + 3, v + 6, v + 7);
      store(&inputs.learned[v], shuffle<0x88>(a, b));
      store(&inputs.pairs[v], shuffle<0xDD>(a, b));
    }
  }

  template <size_t kSets, class Inputs>
  LMZIP_AVX2 void dot(const Inputs& inputs, const std::array<int16_t*, kSets>& weights,
                      std::array<int32_t, kMaxSets>& outputs) {
    static_assert(kSets >= 4 && kSets <= kMaxSets);
    __m256i sums[kMaxSets];
    for (size_t s = 0; s < kMaxSets; ++s) sums[s] = _mm256_setzero_si256();
    for (size_t s = 0; s < kSets; ++s) {
      for (size_t v = 0; v < Inputs::kPairs; v += 8) {
        const __m256i pairs = _mm256_madd_epi16(load(&inputs.pairs[v]), load(weights[s] + 2 * v));
        sums[s] = _mm256_add_epi32(sums[s], _mm256_srai_epi32(pairs, kWeightBits - 8));
      }
    }
    const __m128i low = sum_four(sums[0], sums[1], sums[2], sums[3]);
    const __m128i high =
        kSets > 4 ? sum_four(sums[4], sums[5], sums[6], sums[7]) : _mm_setzero_si128();
    const __m256i all = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    store(&outputs[0], limited(_mm256_srai_epi32(all, 8), kStretchMax));
  }

  LMZIP_AVX2 int mix(const std::array<int32_t, kMaxSets>& outputs, const int32_t* weights) {
    const __m256i products =
        _mm256_srai_epi32(_mm256_mullo_epi32(load(&outputs[0]), load(weights)), 8);
    __m128i half =
        _mm_add_epi32(_mm256_castsi256_si128(products), _mm256_extracti128_si256(products, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
    return clamp_stretch(_mm_cvtsi128_si32(half) >> 8);
  }

  template <class Inputs>
  LMZIP_AVX2 void train(const Inputs& inputs, int16_t* weights, int step) {
    const __m256i steps = _mm256_set1_epi16(static_cast<int16_t>(step));
    for (size_t v = 0; v < Inputs::kPairs; v += 8) {
      const __m256i delta = _mm256_mulhrs_epi16(load(&inputs.pairs[v]), steps);
      store(weights + 2 * v, _mm256_adds_epi16(load(weights + 2 * v), delta));
    }
  }

  LMZIP_AVX2 void train_final(const std::array<int32_t, kMaxSets>& outputs, int32_t* weights,
                              int step) {
    const __m256i products = _mm256_mullo_epi32(load(&outputs[0]), _mm256_set1_epi32(step));
    const __m256i delta =
        _mm256_srai_epi32(_mm256_add_epi32(products, _mm256_set1_epi32(1 << 15)), 16);
    store(weights, limited(_mm256_add_epi32(load(weights), delta), kFinalWeightMax));
  }

  template <class Inputs>
  LMZIP_AVX2 void learn(Inputs& inputs, int bit, uint32_t limit) {
    for (size_t v = 0; v < Inputs::kSlots; v += 8) {
      const __m256i cells = load(&inputs.learned[v]);
      const __m256i counts = _mm256_and_si256(cells, _mm256_set1_epi32(1023));
      const __m256i silent = _mm256_cmpeq_epi32(counts, _mm256_setzero_si256());
      const __m256i p = moved(_mm256_srli_epi32(cells, 10), counts, bit);
      const __m256i more = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(limit)), counts);
      const __m256i next =
          _mm256_or_si256(_mm256_slli_epi32(p, 10), _mm256_sub_epi32(counts, more));
      const __m256i inputs_of = _mm256_blend_epi16(
          stretched(p),
          _mm256_slli_epi32(_mm256_sub_epi32(_mm256_srli_epi32(p, kProbBits - 11),
                                             _mm256_set1_epi32(kProbOne >> (kProbBits - 10))),
                            16),
          0xAA);
      const __m256i cell = _mm256_blendv_epi8(next, cells, silent);
      const __m256i pairs = _mm256_andnot_si256(silent, inputs_of);
      scatter(inputs, v, _mm256_unpacklo_epi32(cell, pairs), 0);
      scatter(inputs, v, _mm256_unpackhi_epi32(cell, pairs), 2);
    }
  }

  LMZIP_AVX2 void groups(const uint32_t* weights, uint32_t* sums) {
    for (size_t i = 0; i < 16; i += 4) {
      __m256i quarters[4];
      for (size_t j = 0; j < 4; ++j) {
        const uint32_t* group = weights + 16 * (i + j);
        quarters[j] = _mm256_add_epi32(_mm256_srli_epi32(load_anywhere(group), kWeightShift),
                                       _mm256_srli_epi32(load_anywhere(group + 8), kWeightShift));
      }
      _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + i),
                       sum_four(quarters[0], quarters[1], quarters[2], quarters[3]));
    }
  }

  LMZIP_AVX2 void nodes(std::array<uint32_t, 32>& sums, std::array<int32_t, 16>& stretched) {
    const __m128i shift = _mm_cvtsi32_si128(PortableKernel::sum_nodes(sums));
    const __m256i one = _mm256_set1_epi32(1);
    for (size_t n = 0; n < 16; n += 8) {
      const __m256i a = load_anywhere(&sums[2 * n]), b = load_anywhere(&sums[2 * n + 8]);
      const __m256i lower = _mm256_srl_epi32(shuffle<0x88>(a, b), shift);
      const __m256i upper = _mm256_srl_epi32(shuffle<0xDD>(a, b), shift);
      const __m256i z = ratios(_mm256_or_si256(_mm256_slli_epi32(upper, 1), one),
                               _mm256_or_si256(_mm256_slli_epi32(lower, 1), one));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(&stretched[n]),
                          _mm256_permute4x64_epi64(z, 0xD8));
    }
  }

 private:
  LMZIP_AVX2 __m256i load(const void* p) {
    return _mm256_load_si256(static_cast<const __m256i*>(p));
  }
  LMZIP_AVX2 __m256i load_anywhere(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  LMZIP_AVX2 void store(void* p, __m256i x) { _mm256_store_si256(static_cast<__m256i*>(p), x); }
  LMZIP_AVX2 __m256i limited(__m256i x, int limit) {
    return _mm256_max_epi32(_mm256_set1_epi32(-limit),
                            _mm256_min_epi32(_mm256_set1_epi32(limit), x));
  }
  template <int kOrder>
  LMZIP_AVX2 __m256i shuffle(__m256i a, __m256i b) {
    return _mm256_castps_si256(
        _mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), kOrder));
  }

  // A cell, or an extra pair in the place of its inputs.
  template <class Inputs>
  LMZIP_AVX2 int64_t one(const Inputs& inputs, size_t i) {
    int64_t bits = 0;
    if (i < Inputs::kSlots) {
      std::memcpy(&bits, inputs.cells[i], 8);
    } else if (i < Inputs::kSlots + Inputs::kExtra) {
      const InputPair& pair = inputs.extra[i - Inputs::kSlots];
      bits = int64_t{pair.linear} << 48 | int64_t{static_cast<uint16_t>(pair.stretched)} << 32;
    }
    return bits;
  }
  template <class Inputs>
  LMZIP_AVX2 __m256i four(const Inputs& inputs, size_t i, size_t j, size_t k, size_t l) {
    return _mm256_set_epi64x(one(inputs, l), one(inputs, k), one(inputs, j), one(inputs, i));
  }

  template <class Inputs>
  LMZIP_AVX2 void scatter(const Inputs& inputs, size_t v, __m256i cells, size_t first) {
    const __m128i halves[2] = {_mm256_castsi256_si128(cells), _mm256_extracti128_si256(cells, 1)};
    for (size_t half = 0; half < 2; ++half) {
      const size_t i = v + first + 4 * half;
      if (i < Inputs::kSlots)
        _mm_storel_epi64(reinterpret_cast<__m128i*>(inputs.cells[i]), halves[half]);
      if (i + 1 < Inputs::kSlots)
        _mm_storeh_pd(reinterpret_cast<double*>(inputs.cells[i + 1]),
                      _mm_castsi128_pd(halves[half]));
    }
  }

  LMZIP_AVX2 __m128i sum_four(__m256i a, __m256i b, __m256i c, __m256i d) {
    const __m256i quarters = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    return _mm_add_epi32(_mm256_castsi256_si128(quarters), _mm256_extracti128_si256(quarters, 1));
  }

  // adapt(): of the products, of 38 bits and a sign, bits 16 to 47.
  LMZIP_AVX2 __m256i moved(__m256i p, __m256i counts, int bit) {
    // 131072 / (2 count + 3), exactly: it is no whole number, and the quotient's distance from one
    // is 128 times its last place or more.
    const __m256i divisors =
        _mm256_add_epi32(_mm256_add_epi32(counts, counts), _mm256_set1_epi32(3));
    const __m256i rates =
        _mm256_cvttps_epi32(_mm256_div_ps(_mm256_set1_ps(131072.0f), _mm256_cvtepi32_ps(divisors)));
    const __m256i errors = _mm256_sub_epi32(_mm256_set1_epi32(bit << kProbBits), p);
    const __m256i even = _mm256_mul_epi32(errors, rates);
    const __m256i odd =
        _mm256_mul_epi32(_mm256_srli_epi64(errors, 32), _mm256_srli_epi64(rates, 32));
    return _mm256_add_epi32(
        p, _mm256_blend_epi32(_mm256_srli_epi64(even, 16), _mm256_slli_epi64(odd, 16), 0xAA));
  }

  // stretch()
  LMZIP_AVX2 __m256i stretched(__m256i p) {
    const __m256i odds = _mm256_add_epi32(_mm256_add_epi32(p, p), _mm256_set1_epi32(1));
    return ratios(odds, _mm256_sub_epi32(_mm256_set1_epi32(2 << kProbBits), odds));
  }

  // stretch_ratio(): a float of a number below 2^24 is exact, and its bits are the exponent (with a
  // bias that the difference cancels) and the mantissa.
  LMZIP_AVX2 __m256i ratios(__m256i odds, __m256i against) {
    const __m256i a = _mm256_srli_epi32(_mm256_castps_si256(_mm256_cvtepi32_ps(odds)), 8);
    const __m256i b = _mm256_srli_epi32(_mm256_castps_si256(_mm256_cvtepi32_ps(against)), 8);
    const __m256i top = _mm256_set1_epi16(kLogTop);
    const __m256i m = _mm256_and_si256(_mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xAA), top);
    const __m256i hump = _mm256_mulhrs_epi16(m, _mm256_sub_epi16(top, m));
    const __m256i bend = _mm256_sub_epi16(_mm256_set1_epi16(kLogBend0),
                                          _mm256_mulhrs_epi16(m, _mm256_set1_epi16(kLogBend1)));
    const __m256i bent =
        _mm256_madd_epi16(_mm256_mulhrs_epi16(hump, bend), _mm256_set1_epi32(-0xFFFF));  // 1, -1
    const __m256i ratio = _mm256_add_epi32(_mm256_sub_epi32(a, b), bent);
    const __m256i scaled = _mm256_add_epi32(_mm256_mullo_epi32(ratio, _mm256_set1_epi32(kLogScale)),
                                            _mm256_set1_epi32(1 << (kLogScaleShift - 1)));
    return limited(_mm256_srai_epi32(scaled, kLogScaleShift), kStretchMax);
  }
};
#undef LMZIP_AVX2
#endif

}  // namespace lmzip

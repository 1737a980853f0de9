// logistic.h: probabilities of 22 bits <-> the logistic domain, in units of 1/256 nat.
//
//   squash(x)  = 2^22 / (1 + e^(-x/256)), for x in [-kStretchMax, kStretchMax]; a table
//   stretch(p) = 256 ln(q / (1 - q)) with q = (p + 1/2) / 2^22; arithmetic, within 1.2 of it, which
//                vectors do as well (mix_kernels.h), and that tells 1 in 5000 from 1 in 100000
//
// Integers only, the table too: no libm, the same everywhere.  Specified in docs/mixer.md
// section 3.
#pragma once
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace lmzip {

inline constexpr int kProbBits = 22;
inline constexpr int kProbOne = 1 << kProbBits;
inline constexpr int kStretchMax = 3071;  // 12 nats: 1 in 163,000

class Logistic {
 public:
  constexpr Logistic() {
    // e^(-1/256) * 2^31 = 2139111402.69, rounded.
    constexpr uint64_t kDecay = 2139111403;
    uint64_t power = uint64_t{1} << 31;  // e^(-x/256) * 2^31
    for (int x = 0; x <= kStretchMax; ++x) {
      const auto p =
          static_cast<int>((uint64_t{1} << (31 + kProbBits)) / ((uint64_t{1} << 31) + power));
      squash_[static_cast<size_t>(kStretchMax + x)] = p;
      squash_[static_cast<size_t>(kStretchMax - x)] = kProbOne - p;
      power = (power * kDecay + (uint64_t{1} << 30)) >> 31;
    }
  }

  constexpr int squash(int x) const { return squash_[static_cast<size_t>(x + kStretchMax)]; }

 private:
  std::array<int32_t, 2 * kStretchMax + 1> squash_{};
};

inline constexpr Logistic kLogistic{};

constexpr int squash(int x) { return kLogistic.squash(x); }

constexpr int clamp_stretch(int x) {
  return x > kStretchMax ? kStretchMax : x < -kStretchMax ? -kStretchMax : x;
}

// The base-2 logarithm of a number below 2^24 in 1/32768: straight between powers of two, and what
// is to be added to it, m (1 - m) (c0 - c1 m) for a mantissa of 1 + m.
inline constexpr int kLogBits = 15;
inline constexpr int kLogTop = (1 << kLogBits) - 1;
inline constexpr int kLogBend0 = 14180, kLogBend1 = 5350;
inline constexpr int kLogScale = 2839;  // 256 ln 2 in 1/16
inline constexpr int kLogScaleShift = kLogBits + 4;

constexpr int round_product(int a, int b) { return (a * b + (1 << 14)) >> 15; }

constexpr int bent_log2(uint32_t n) {
  const int exponent = static_cast<int>(std::bit_width(n)) - 1;
  const int m = static_cast<int>(n << (23 - exponent) >> 8) & kLogTop;
  const int hump = round_product(m, kLogTop - m);
  const int bend = kLogBend0 - round_product(m, kLogBend1);
  return (exponent << kLogBits) + m + round_product(hump, bend);
}

// 256 ln(a / b), for 0 < a, b < 2^23.
constexpr int stretch_ratio(uint32_t a, uint32_t b) {
  const int ratio = bent_log2(a) - bent_log2(b);  // below 2^20
  return clamp_stretch((ratio * kLogScale + (1 << (kLogScaleShift - 1))) >> kLogScaleShift);
}

// 0 <= p < 2^22.
constexpr int stretch(uint32_t p) {
  return stretch_ratio(2 * p + 1, (2u << kProbBits) - 2 * p - 1);
}

}  // namespace lmzip

// logistic.h: probabilities of 16 bits <-> the logistic domain, in units of 1/256 nat.
//
//   squash(x)  = 65536 / (1 + e^(-x/256)), within 1..65535, for x in [-kStretchMax, kStretchMax]
//   stretch(p) = ln(p / (65536 - p)) * 256, by the 12 leading bits of p; stretch16 is exact in the
//                tails too, where 12 bits would not tell 1 in 5000 from 1 in 50000
//
// Both are tables, made at start-up by the integer recurrence below: no libm, the same everywhere.
// Specified in docs/mixer.md section 3.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

namespace lmzip {

// 65536 / (1 + e^11) = 1.09: one step further and squash would need to round up to stay above zero.
inline constexpr int kStretchMax = 2815;

class Logistic {
 public:
  constexpr Logistic() {
    // e^(-1/256) * 2^31 = 2139111402.69, rounded.
    constexpr uint64_t kDecay = 2139111403;
    uint64_t power = uint64_t{1} << 31;  // e^(-x/256) * 2^31
    for (int x = 0; x <= kStretchMax; ++x) {
      const auto p = static_cast<uint16_t>((uint64_t{1} << 47) / ((uint64_t{1} << 31) + power));
      squash_[static_cast<size_t>(kStretchMax + x)] = p;
      squash_[static_cast<size_t>(kStretchMax - x)] = static_cast<uint16_t>(65536 - p);
      power = (power * kDecay + (uint64_t{1} << 30)) >> 31;
    }
    int x = -kStretchMax;
    for (int i = 0; i < 4096; ++i) {
      while (x < kStretchMax && squash(x + 1) <= i * 16 + 8) ++x;
      stretch_[static_cast<size_t>(i)] = static_cast<int16_t>(x);
    }
    x = -kStretchMax;
    for (int p = 0; p < kTail; ++p) {
      while (squash(x + 1) <= p) ++x;
      tail_[static_cast<size_t>(p)] = static_cast<int16_t>(x);
    }
  }

  constexpr int squash(int x) const { return squash_[static_cast<size_t>(x + kStretchMax)]; }
  constexpr int stretch12(uint32_t p12) const { return stretch_[p12]; }
  constexpr int stretch16(uint32_t p16) const {
    if (p16 < kTail) return tail_[p16];
    if (p16 > 65536 - kTail) return -tail_[65536 - p16];
    return stretch_[p16 >> 4];
  }

 private:
  static constexpr int kTail = 2048;

  std::array<uint16_t, 2 * kStretchMax + 1> squash_{};
  std::array<int16_t, 4096> stretch_{};
  std::array<int16_t, kTail> tail_{};
};

inline constexpr Logistic kLogistic{};

constexpr int clamp_stretch(int x) {
  return x > kStretchMax ? kStretchMax : x < -kStretchMax ? -kStretchMax : x;
}

}  // namespace lmzip

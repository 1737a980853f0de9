// logistic.h: probabilities of 22 bits <-> the logistic domain, in units of 1/256 nat.
//
//   squash(x)  = 2^22 / (1 + e^(-x/256)), for x in [-kStretchMax, kStretchMax]
//   stretch(p) = ln(p / (2^22 - p)) * 256, by the 12 leading bits of p, and by 17 of them where p
//                is within 1/32 of 0 or 1: 12 bits would not tell 1 in 5000 from 1 in 100000
//
// Both are tables, made at compile time by the integer recurrence below: no libm, the same
// everywhere.  Specified in docs/mixer.md section 3.
#pragma once
#include <array>
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
    fill(middle_, kMiddleShift);
    fill(tail_, kTailShift);
  }

  constexpr int squash(int x) const { return squash_[static_cast<size_t>(x + kStretchMax)]; }
  // 0 <= p < 2^22.
  constexpr int stretch(uint32_t p) const {
    constexpr uint32_t kTail = kTable << kTailShift;
    if (p < kTail) return tail_[p >> kTailShift];
    if (p >= kProbOne - kTail) return -tail_[(kProbOne - 1 - p) >> kTailShift];
    return middle_[p >> kMiddleShift];
  }

 private:
  static constexpr size_t kTable = 4096;
  static constexpr int kMiddleShift = 10, kTailShift = 5;
  using Table = std::array<int16_t, kTable>;

  // At i the greatest x whose squash(x) is at most the middle of the probabilities i stands for.
  constexpr void fill(Table& table, int shift) const {
    int x = -kStretchMax;
    for (size_t i = 0; i < kTable; ++i) {
      const int p = (static_cast<int>(i) << shift) + (1 << (shift - 1));
      while (x < kStretchMax && squash(x + 1) <= p) ++x;
      table[i] = static_cast<int16_t>(x);
    }
  }

  std::array<int32_t, 2 * kStretchMax + 1> squash_{};
  Table middle_{}, tail_{};
};

inline constexpr Logistic kLogistic{};

constexpr int clamp_stretch(int x) {
  return x > kStretchMax ? kStretchMax : x < -kStretchMax ? -kStretchMax : x;
}

}  // namespace lmzip

// adaptive_map.h: small contexts -> probabilities that learn.
//
//   AdaptiveMap  a probability of 22 bits with a count of 10 for each context; each update moves it
//                by 1 / (count + 1.5) of the error, so that it is an average at first and a moving
//                average from `limit` updates on.
//   Apm          refines a probability in a context: 25 knots across the logistic domain,
//                interpolated; the knot nearest to the input learns.
// Specified in docs/mixer.md section 5.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "logistic.h"

namespace lmzip {

inline constexpr std::array<uint32_t, 1024> kReciprocals = [] {
  std::array<uint32_t, 1024> table{};
  for (uint32_t n = 0; n < 1024; ++n) table[n] = 131072 / (2 * n + 3);  // 65536 / (n + 1.5)
  return table;
}();

// One cell: 22 bits of probability above 10 bits of count.
inline constexpr uint32_t adaptive_cell(uint32_t p16, uint32_t count) { return p16 << 16 | count; }

// p stays within [0, 2^22): towards 2^22 the step is rounded down, towards 0 it is at most p.
inline uint32_t adapt(uint32_t cell, int bit, uint32_t limit) {
  const uint32_t count = cell & 1023;
  const int64_t p22 = cell >> 10;
  const int64_t error = (static_cast<int64_t>(bit) << 22) - p22;
  const int64_t moved = p22 + ((error * kReciprocals[count]) >> 16);
  return static_cast<uint32_t>(moved) << 10 | (count + (count < limit));
}

inline uint32_t p22_of(uint32_t cell) { return cell >> 10; }

class Apm {
 public:
  static constexpr int kStep = 256;
  static constexpr int kOffset = kStretchMax + 1;
  static constexpr int kKnots = 2 * kOffset / kStep + 1;  // 25
  static constexpr uint32_t kInitialCount = 6;

  explicit Apm(size_t contexts) : knots_(contexts * kKnots) {
    for (size_t i = 0; i < knots_.size(); ++i) {
      const int x = static_cast<int>(i % kKnots) * kStep - kOffset;
      knots_[i] = static_cast<uint32_t>(kLogistic.squash(clamp_stretch(x))) << 10 | kInitialCount;
    }
  }

  // The refined probability of 22 bits of a stretched one.
  uint32_t refine(int stretched, size_t context) {
    const auto x = static_cast<uint32_t>(stretched + kOffset);
    const uint32_t weight = x % kStep;
    index_ = context * kKnots + x / kStep;
    nearest_ = index_ + (weight * 2 >= kStep);
    return (p22_of(knots_[index_]) * (kStep - weight) + p22_of(knots_[index_ + 1]) * weight) /
           kStep;
  }

  void prefetch(size_t context) const {
    __builtin_prefetch(&knots_[context * kKnots]);
    __builtin_prefetch(&knots_[context * kKnots + kKnots - 1]);
  }

  void update(int bit, uint32_t limit) { knots_[nearest_] = adapt(knots_[nearest_], bit, limit); }

 private:
  std::vector<uint32_t> knots_;
  size_t index_ = 0;
  size_t nearest_ = 0;
};

}  // namespace lmzip

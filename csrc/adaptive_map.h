// adaptive_map.h: small contexts -> probabilities that learn.
//
//   adapt         a probability of 22 bits with a count of 10; each update moves it by
//                 1 / (count + 1.5) of the error, so that it is an average at first and a moving
//                 average from `limit` updates on
//   MixerCell     such a probability together with what the mixer takes from it
//   Apm           refines a probability in a context: 16 knots across the logistic domain,
//                 interpolated; the knot nearest to the input learns
// Specified in docs/mixer.md section 4 and 8.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

#include "aligned.h"
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

inline constexpr uint32_t p22_of(uint32_t cell) { return cell >> 10; }

// The probability itself, beside its logarithm: -1024..1023.
inline constexpr int linear(uint32_t p) {
  return (static_cast<int>(p) - kProbOne / 2) >> (kProbBits - 11);
}

// Two inputs of the mixer, of 16 bits each.
struct InputPair {
  int16_t stretched = 0, linear = 0;
};

inline InputPair input_pair(uint32_t p) {
  return {static_cast<int16_t>(stretch(p)), static_cast<int16_t>(linear(p))};
}

// What is read for every bit is kept beside what is learned after it.  A cell with the count 0 says
// nothing and learns nothing: its inputs stay 0.
struct alignas(8) MixerCell {
  uint32_t cell = 0;
  InputPair inputs;

  static MixerCell starting(uint32_t p16, uint32_t count) {
    const uint32_t cell = adaptive_cell(p16, count);
    return {cell, input_pair(p22_of(cell))};
  }
  void learn(int bit, uint32_t limit) {
    if ((cell & 1023) == 0) return;
    cell = adapt(cell, bit, limit);
    inputs = input_pair(p22_of(cell));
  }
};

class Apm {
 public:
  static constexpr int kStep = 410;
  static constexpr int kOffset = kStretchMax + 1;
  static constexpr size_t kKnots = 16;  // a cache line; the last interval begins at 14 * kStep
  static constexpr uint32_t kInitialCount = 6;

  explicit Apm(size_t contexts) : knots_(contexts * kKnots) {
    for (size_t i = 0; i < kKnots; ++i) {
      const int x = static_cast<int>(i) * kStep - kOffset;
      knots_[i] = static_cast<uint32_t>(squash(clamp_stretch(x))) << 10 | kInitialCount;
    }
    for (size_t i = kKnots; i < knots_.size(); ++i) knots_[i] = knots_[i - kKnots];
  }

  // The refined probability of 22 bits of a stretched one.
  uint32_t refine(int stretched, size_t context) {
    const auto x = static_cast<uint32_t>(stretched + kOffset);
    const uint32_t weight = x % kStep;
    const size_t index = context * kKnots + x / kStep;
    nearest_ = index + (weight * 2 >= kStep);
    return (p22_of(knots_[index]) * (kStep - weight) + p22_of(knots_[index + 1]) * weight) / kStep;
  }

  [[gnu::always_inline]] void prefetch(size_t context) const {
    __builtin_prefetch(knots_.data() + context * kKnots);
  }
  [[gnu::always_inline]] void prefetch_two(size_t context) const {
    prefetch(context);
    prefetch(context + 1);
  }

  void update(int bit, uint32_t limit) { knots_[nearest_] = adapt(knots_[nearest_], bit, limit); }

 private:
  AlignedArray<uint32_t> knots_;
  size_t nearest_ = 0;
};

}  // namespace lmzip

// recall.h: what followed the last few tokens before, anywhere in the frame, as a guess that is
// coded before the token itself.
//
// The model forgets what lies outside its window, and knows only its own lane; this remembers all
// lanes.  Lanes advance in lockstep: in a step all lanes guess, are coded, and then are learned
// from, in the order of lanes; so the guesses of a step may be made in any order and on any thread.
// Guesses depend on tokens alone, the confidence in them on the model's probabilities too.
// Specified in docs/format.md, method 5.
#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "logistic.h"

namespace lmzip {

class Recall {
 public:
  struct Guess {
    uint32_t token;
    uint32_t context;  // 0: no guess; else 16 * order + count, for the confidence
  };

  explicit Recall(size_t lanes)
      : histories_(lanes), table_(kOrders.size() << kTableBits), knots_(kContexts * kKnots) {
    for (size_t i = 0; i < knots_.size(); ++i) {
      const int x = static_cast<int>(i % kKnots) * kStep - (kStretchMax + 1);
      knots_[i] = static_cast<uint16_t>(std::min(squash(clamp_stretch(x)) >> 6, 65535));
    }
  }

  // The token that followed the longest context that was seen before.
  Guess guess(size_t lane) const {
    for (size_t order = 0; order < kOrders.size(); ++order) {
      const Place place = place_of(lane, order);
      const uint32_t slot = table_[place.index];
      if ((slot & kCheckMask) == place.check && count_of(slot) != 0)
        return {slot >> 12, static_cast<uint32_t>(16 * order + count_of(slot))};
    }
    return {0, 0};
  }

  // The probability, in 1..65535 of 2^16, that the guess is right; p16: the model's, in the same.
  uint32_t refine(const Guess& guess, uint32_t p16) const {
    const Knots k = knots_of(guess, p16);
    const uint32_t learned = (knots_[k.low] * (kStep - k.weight) + knots_[k.low + 1] * k.weight) /
                             static_cast<uint32_t>(kStep);
    return std::clamp<uint32_t>((p16 + 3 * learned) >> 2, 1, 65535);
  }

  // After the step: whether the guess was right.
  void adapt(const Guess& guess, uint32_t p16, bool right) {
    const Knots k = knots_of(guess, p16);
    const bool upper = 2 * k.weight >= kStep;
    for (size_t i = 0; i < 2; ++i) {
      const int old = knots_[k.low + i], target = right ? 65535 : 0;
      const int rate = (i == 1) == upper ? kRate : kRate + 1;
      knots_[k.low + i] = static_cast<uint16_t>(old + ((target - old) >> rate));
    }
  }

  // After the step: the lane's token, an escape counting as one.
  void remember(size_t lane, uint32_t token) {
    for (size_t order = 0; order < kOrders.size(); ++order) {
      const Place place = place_of(lane, order);
      uint32_t& slot = table_[place.index];
      const uint32_t count = count_of(slot);
      if ((slot & kCheckMask) == place.check && slot >> 12 == token && count != 0) {
        slot = make_slot(token, std::min<uint32_t>(count + 1, 15), place.check);
      } else if (count > 1) {
        slot = make_slot(slot >> 12, count / 2, slot & kCheckMask);
      } else {
        slot = make_slot(token, 1, place.check);
      }
    }
    std::array<uint32_t, kLongest>& history = histories_[lane];
    std::copy_backward(history.begin(), history.end() - 1, history.end());
    history[0] = token;
  }

  static constexpr size_t memory() { return (kOrders.size() << kTableBits) * sizeof(uint32_t); }

 private:
  static constexpr std::array<size_t, 3> kOrders = {5, 3, 2};  // tokens of context
  static constexpr size_t kLongest = 5;
  static constexpr int kTableBits = 20;
  static constexpr uint32_t kCheckMask = 255;
  static constexpr size_t kContexts = 48;
  static constexpr size_t kKnots = 33;
  static constexpr int kStep = 2 * (kStretchMax + 1) / (static_cast<int>(kKnots) - 1);  // 192
  static constexpr int kRate = 5;

  struct Place {
    size_t index;
    uint32_t check;
  };
  struct Knots {
    size_t low;
    uint32_t weight;
  };

  // A slot: token (20 bits), count (4), check (8).
  static uint32_t count_of(uint32_t slot) { return slot >> 8 & 15; }
  static uint32_t make_slot(uint32_t token, uint32_t count, uint32_t check) {
    return token << 12 | count << 8 | check;
  }

  Place place_of(size_t lane, size_t order) const {
    uint32_t h = 0;
    for (size_t i = 0; i < kOrders[order]; ++i) h = (h + histories_[lane][i] + 1) * 0x9E3779B1u;
    h = (h ^ h >> 15) * 0x2C1B3C6Du;
    h ^= h >> 12;
    return {(order << kTableBits) + (h >> 12), h & kCheckMask};
  }

  static Knots knots_of(const Guess& guess, uint32_t p16) {
    const int x = stretch(p16 << 6) + kStretchMax + 1;  // 1 .. 2 * kStretchMax + 1
    return {guess.context * kKnots + static_cast<size_t>(x / kStep),
            static_cast<uint32_t>(x % kStep)};
  }

  std::vector<std::array<uint32_t, kLongest>> histories_;  // (lanes), newest first, 0 at first
  std::vector<uint32_t> table_;                            // (orders, 2^kTableBits)
  std::vector<uint16_t> knots_;                            // (contexts, knots)
};

}  // namespace lmzip

// recall.h: what followed the last few tokens before, anywhere in the frame.
//
// The model forgets what lies outside its window, and knows only its own lane; this remembers all
// lanes.  Lanes advance in lockstep: in a step all lanes look up, are coded, and then are
// remembered, in the order of lanes; so the lookups of a step may be made in any order and on any
// thread.  What is found depends on tokens alone.  Specified in docs/format.md, method 5.
#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace lmzip {

// A token that may come next.
struct Candidate {
  static constexpr size_t kOrders = 5;  // contexts that it may have followed

  uint32_t token;
  int32_t log_p = 0;                    // the model's, TokenChoice's to fill in
  std::array<uint8_t, kOrders> seen{};  // how often, of how many: 0, or 1 .. Recall::kStates
};

class Recall {
 public:
  static constexpr size_t kStates = 20;
  static constexpr size_t kMost = 20;  // tokens that a lookup finds at most

  explicit Recall(size_t lanes) : histories_(lanes), table_(kOrders.size() * kBuckets) {}

  // The tokens that followed the lane's contexts, longest context first; at most kMost.
  void look_up(size_t lane, std::vector<Candidate>& out) const {
    out.clear();
    for (size_t order = 0; order < kOrders.size(); ++order) {
      const Place place = place_of(lane, order);
      const Bucket& bucket = table_[place.index];
      uint32_t total = 0;
      for (const uint32_t slot : bucket) total += matches(slot, place) ? count_of(slot) : 0;
      for (const uint32_t slot : bucket) {
        if (!matches(slot, place)) continue;
        auto found = std::find_if(out.begin(), out.end(),
                                  [&](const Candidate& c) { return c.token == slot >> 12; });
        if (found == out.end()) found = out.insert(out.end(), Candidate{slot >> 12});
        found->seen[order] = state_of(count_of(slot), total - count_of(slot));
      }
    }
  }

  // After the step: the lane's token, an escape counting as one.
  void remember(size_t lane, uint32_t token) {
    for (size_t order = 0; order < kOrders.size(); ++order) {
      const Place place = place_of(lane, order);
      Bucket& bucket = table_[place.index];
      size_t i = 0;
      while (i < kSlots && !(matches(bucket[i], place) && bucket[i] >> 12 == token)) ++i;
      if (i == kSlots) {  // takes the place of the last: the rarest, of those the oldest
        bucket[--i] = token << 12 | 1 << 8 | place.check;
      } else if (count_of(bucket[i]) < 15) {
        bucket[i] += 1 << 8;
      }
      for (; i > 0 && count_of(bucket[i - 1]) <= count_of(bucket[i]); --i)
        std::swap(bucket[i - 1], bucket[i]);
    }
    std::array<uint32_t, kLongest>& history = histories_[lane];
    std::copy_backward(history.begin(), history.end() - 1, history.end());
    history[0] = token;
  }

  static constexpr size_t memory() { return kOrders.size() * kBuckets * sizeof(Bucket); }

 private:
  static constexpr std::array<size_t, Candidate::kOrders> kOrders = {6, 4, 3, 2, 1};  // tokens
  static constexpr size_t kLongest = 6;
  static constexpr int kBucketBits = 18;
  static constexpr size_t kBuckets = size_t{1} << kBucketBits;  // of each order
  static constexpr size_t kSlots = 4;
  static constexpr uint32_t kCheckMask = 255;

  // Slots: token (20 bits), count (4; 0: empty), check (8).  Counts do not grow.
  using Bucket = std::array<uint32_t, kSlots>;
  static_assert(kMost == kOrders.size() * kSlots);
  struct Place {
    size_t index;
    uint32_t check;
  };

  static uint32_t count_of(uint32_t slot) { return slot >> 8 & 15; }
  static bool matches(uint32_t slot, const Place& place) {
    return count_of(slot) != 0 && (slot & kCheckMask) == place.check;
  }

  // Times a token followed, and times others did.
  static uint8_t state_of(uint32_t count, uint32_t others) {
    const int often = count < 4 ? static_cast<int>(count) - 1 : count < 7 ? 3 : 4;
    const int rest = others < 2 ? static_cast<int>(others) : others < 4 ? 2 : 3;
    return static_cast<uint8_t>(1 + 4 * often + rest);
  }

  Place place_of(size_t lane, size_t order) const {
    uint32_t h = 0;
    for (size_t i = 0; i < kOrders[order]; ++i) h = (h + histories_[lane][i] + 1) * 0x9E3779B1u;
    h = (h ^ h >> 15) * 0x2C1B3C6Du;
    h ^= h >> 12;
    return {(order << kBucketBits) + (h >> (32 - kBucketBits)), h & kCheckMask};
  }

  std::vector<std::array<uint32_t, kLongest>> histories_;  // (lanes), newest first, 0 at first
  std::vector<Bucket> table_;                              // (orders, kBuckets)
};

}  // namespace lmzip

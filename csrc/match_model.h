// match_model.h: the byte that followed the last time that the recent bytes occurred, in any lane.
//
// Specified in docs/mixer.md section 7.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "aligned.h"
#include "mixer_lane.h"

namespace lmzip {

// Where a lane's match points, between two bytes.
struct Match {
  uint32_t at = 0;      // frame position of the expected byte
  uint32_t length = 0;  // bytes that agreed without interruption; verified, then counted
  uint32_t misses = 0;  // recent disagreements that the match outlived
  int expected = -1;    // the byte expected, -1: none

  // Of the step that begins.
  uint32_t place = 0;      // in the table, of the lane's last bytes
  uint32_t candidate = 0;  // the frame position behind the same bytes, 0: none is looked at
};

class MatchModel {
 public:
  static constexpr uint32_t kVerify = 40;
  static constexpr uint32_t kMaxLength = 400;
  static constexpr uint32_t kMaxMisses = 8;
  static constexpr int kContexts = 16 * 4;

  // min_length: up to 8, or 16 and more.
  MatchModel(int min_length, int log2_size)
      : table_(size_t{1} << log2_size), min_length_(min_length), shift_(32 - log2_size) {}

  // At the start of a step all lanes move on together, in three passes: what one pass asks of the
  // memory for a lane is on the way while it goes on to the next.  First, where to look:
  [[gnu::always_inline]] void fetch(Match& match, const Lane& lane) const {
    match.place = hash(lane) >> shift_;
    __builtin_prefetch(&table_[match.place]);
  }

  // Then follows the match by the lane's last byte, and remembers this place.
  void follow(Match& match, const Lane& lane, const SharedPast& past) {
    follow(match, static_cast<uint8_t>(lane.byte_back(1)));
    match.candidate = 0;
    if (lane.pos() - lane.begin() >= static_cast<uint32_t>(min_length_)) {
      uint32_t& place = table_[match.place];
      if (match.length < kReplaceBelow && place != 0) {
        match.candidate = place;
        __builtin_prefetch(past.bytes.data() + place - 1);
      }
      place = lane.pos();
    }
    __builtin_prefetch(past.bytes.data() + match.at);
  }

  // Then takes a longer one if there is one, and says what it expects.
  void settle(Match& match, const Lane& lane, const std::vector<Lane>& lanes, uint32_t stride,
              const SharedPast& past) const {
    if (match.candidate != 0) find(match, lane, past);
    match.expected = known(match.at, lanes, stride) && (match.length > 0 || match.misses > 0)
                         ? past.bytes[match.at]
                         : -1;
  }

  // 0 .. kContexts - 1: how far the match is to be trusted.
  static uint32_t trust(const Match& match) {
    const uint32_t n = match.length;
    const uint32_t bucket = n < 8     ? n
                            : n < 12  ? 8
                            : n < 16  ? 9
                            : n < 20  ? 10
                            : n < 24  ? 11
                            : n < 32  ? 12
                            : n < 48  ? 13
                            : n < 400 ? 14
                                      : 15;
    return bucket * 4 + std::min(match.misses, 3u);
  }

 private:
  static constexpr uint32_t kReplaceBelow = 16;

  static void follow(Match& match, uint8_t byte) {
    if (match.expected < 0) {
      forget(match);
      return;
    }
    ++match.at;
    if (match.expected == byte) {
      match.length = std::min(match.length + 1, kMaxLength);
      if (match.length >= 16) match.misses = 0;
    } else {
      match.length = 0;
      if (++match.misses > kMaxMisses) forget(match);
    }
  }

  static void forget(Match& match) {
    match.at = match.length = match.misses = 0;
    match.expected = -1;
  }

  void find(Match& match, const Lane& lane, const SharedPast& past) const {
    const uint32_t place = match.candidate;
    const uint32_t most = std::min({kVerify, place, lane.pos() - lane.begin()});
    uint32_t n = 0;
    while (n < most && past.bytes[place - 1 - n] == past.bytes[lane.pos() - 1 - n]) ++n;
    if (n >= static_cast<uint32_t>(min_length_) && n > match.length) {
      match.at = place;
      match.length = n;
      match.misses = 0;
    }
  }

  // Whether the byte there is decoded: it lies in a lane's piece, before that lane's position.
  static bool known(uint32_t at, const std::vector<Lane>& lanes, uint32_t stride) {
    const size_t lane = at / stride;
    return lane < lanes.size() && at < lanes[lane].pos();
  }

  // Of the last min_length bytes, or of 16 if it is longer.
  uint32_t hash(const Lane& lane) const {
    const uint64_t bytes = lane.recent(std::min(min_length_, 8));
    const uint32_t h = hash_of(static_cast<uint32_t>(bytes), static_cast<uint32_t>(bytes >> 32));
    if (min_length_ <= 8) return h;
    return hash_of(h, static_cast<uint32_t>(lane.older()),
                   static_cast<uint32_t>(lane.older() >> 32));
  }

  AlignedArray<uint32_t> table_;
  int min_length_;
  int shift_;
};

}  // namespace lmzip

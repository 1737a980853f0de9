// bit_history.h: what followed a context so far, in one byte: a state of a finite machine.
//
// A state is a pair of counts (zeros, ones), of which large ones are kept approximately, and as
// much of the order of the bits as fits: all of it up to four bits, the last bit beyond.  When a
// bit contradicts a long run, part of the run is forgotten.  States are numbered by the total of
// their counts, so that the number itself serves as the priority in the hash table; 0 is "never
// seen". Approximate counts grow with a probability: there are kVariants transition tables, and the
// caller rotates through them.  Specified in docs/mixer.md section 4.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

namespace lmzip {

class BitHistory {
 public:
  static constexpr int kVariants = 8;

  BitHistory();

  // next()[variant][2 * state + bit]
  using Table = std::array<std::array<uint8_t, 512>, kVariants>;
  const Table& next() const { return next_; }

  // The 16-bit probability of a 1 that a state suggests before anything is learned.
  uint16_t initial_p16(int state) const { return initial_[static_cast<size_t>(state)]; }
  int states() const { return states_; }
  int zeros(int state) const { return zeros_[static_cast<size_t>(state)]; }
  int ones(int state) const { return ones_[static_cast<size_t>(state)]; }

 private:
  Table next_{};
  std::array<uint16_t, 256> initial_{};
  std::array<uint8_t, 256> zeros_{};
  std::array<uint8_t, 256> ones_{};
  int states_ = 0;
};

// The one machine; made at the first call.
const BitHistory& bit_history();

}  // namespace lmzip

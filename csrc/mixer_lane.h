// mixer_lane.h: what the context models know of one lane, and the contexts they make of it.
//
// A context is a 32-bit hash.  It is a function of the lane's own past bytes and of tables shared
// by the lanes (what followed a byte or a pair of bytes before; the period of records). Specified
// in docs/mixer.md section 6.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "aligned.h"
#include "x86_decoder.h"

namespace lmzip {

inline constexpr uint32_t kHashA = 0x9E3779B1;  // 2^32 / golden ratio, made prime
inline constexpr uint32_t kHashB = 0x85EBCA77;
inline constexpr uint32_t kHashC = 0xC2B2AE3D;

constexpr uint32_t hash_of(uint32_t a, uint32_t b) {
  uint32_t h = a * kHashA ^ b * kHashB;
  h = (h ^ h >> 15) * kHashC;
  return h ^ h >> 16;
}
constexpr uint32_t hash_of(uint32_t a, uint32_t b, uint32_t c) { return hash_of(hash_of(a, b), c); }

// Kinds of bytes: what a number, a name or a date looks like, whatever it says.
inline constexpr std::array<uint8_t, 256> kShapeClass = [] {
  std::array<uint8_t, 256> table{};
  for (size_t b = 0; b < 256; ++b) {
    table[b] = static_cast<uint8_t>(b >= '0' && b <= '9'   ? 1
                                    : b >= 'a' && b <= 'z' ? 2
                                    : b >= 'A' && b <= 'Z' ? 3
                                    : b >= 128             ? 4
                                    : b == ' '             ? 5
                                    : b == '\n'            ? 6
                                    : b < 32               ? 7
                                                           : 8 + b % 8);
  }
  return table;
}();

// Bytes of the frame decoded so far, and what all lanes learn from them together.
struct SharedPast {
  AlignedArray<uint8_t> bytes;  // the frame; zeros where nothing is decoded yet
  std::vector<uint16_t> after_pair = std::vector<uint16_t>(65536);  // the last 2 successors

  // Period of records.
  std::vector<uint32_t> period_votes = std::vector<uint32_t>(kMaxPeriod + 1);
  uint32_t period = 0;  // 0: none found
  uint32_t until_count = kCountEvery;

  static constexpr uint32_t kMaxPeriod = 1023;
  static constexpr uint32_t kCountEvery = 2048;

  void count_periods() {
    uint32_t best = 0;
    for (uint32_t d = 2; d <= kMaxPeriod; ++d) {
      if (period_votes[d] > period_votes[best]) best = d;
    }
    period = period_votes[best] > kCountEvery / 16 ? best : 0;
    for (uint32_t& votes : period_votes) votes /= 2;
  }
};

class Lane {
 public:
  // is_code: whether x86 instructions are followed.
  Lane(uint32_t begin, uint32_t end, bool is_code = false)
      : begin_(begin), end_(end), pos_(begin), line_(begin), is_code_(is_code) {
    cells_[0] = begin;
  }

  // kPairs, kPeriods: whether a context asks for successors of pairs, for the period of records.
  template <bool kPairs, bool kPeriods>
  void append(uint8_t byte, SharedPast& past) {
    past.bytes[pos_] = byte;
    if constexpr (kPairs) {
      uint16_t& pair = past.after_pair[recent_ & 0xffff];
      pair = static_cast<uint16_t>(pair << 8 | byte);
    }
    if constexpr (kPeriods) vote_period(byte, past);
    older_ = older_ << 8 | recent_ >> 56;
    recent_ = recent_ << 8 | byte;
    ++pos_;
    follow_words(byte);
    follow_lines(byte);
    follow_cells(byte);
    shape_ = shape_ << 4 | kShapeClass[byte];
    if (is_code_) x86_.follow(byte);
  }

  uint32_t pos() const { return pos_; }
  uint32_t begin() const { return begin_; }
  uint32_t end() const { return end_; }
  uint32_t byte_back(int n) const { return recent_ >> (8 * (n - 1)) & 0xff; }
  uint64_t recent() const { return recent_; }
  uint64_t older() const { return older_; }  // the eight bytes before recent()
  uint64_t recent(int n) const { return recent_ & (~uint64_t{0} >> (64 - 8 * n)); }
  uint32_t word() const { return word_; }
  uint32_t word_back(int n) const { return words_[static_cast<size_t>(n - 1)]; }
  uint32_t column() const { return pos_ - line_; }
  uint32_t key() const { return key_; }
  uint32_t shape() const { return shape_; }
  uint32_t cell() const { return cell_; }
  uint32_t cell_offset() const { return pos_ - cells_[cell_]; }

  const X86Decoder& x86() const { return x86_; }

  // The byte in the same place of the same cell of the line above: 0 without such a cell, 1 behind
  // its end.
  uint32_t cell_above(const SharedPast& past) const {
    if (cell_ >= above_count_) return 0;
    const uint32_t at = above_cells_[cell_] + cell_offset();
    const uint32_t end = cell_ + 1 < above_count_ ? above_cells_[cell_ + 1] : line_;
    return at < end ? past.bytes[at] : 1;
  }
  // The byte one record earlier in this lane, 0 without one.
  uint32_t record_back(const SharedPast& past) const {
    const uint32_t distance = past.period;
    return distance != 0 && pos_ - begin_ >= distance ? past.bytes[pos_ - distance] : 0;
  }

 private:
  static bool is_letter(uint8_t b) {
    return (b >= 'a' && b <= 'z') || (b >= 'A' && b <= 'Z') || b >= 128;
  }

  void follow_words(uint8_t byte) {
    if (is_letter(byte)) {
      const uint32_t lower = byte >= 'A' && byte <= 'Z' ? byte + 32u : byte;
      word_ = (word_ + lower + 1) * kHashA;
      word_ ^= word_ >> 13;
    } else if (word_ != 0) {
      words_[2] = words_[1];
      words_[1] = words_[0];
      words_[0] = word_;
      word_ = 0;
    }
  }

  void follow_lines(uint8_t byte) {
    if (byte == '\n') {
      line_ = pos_;
    }
    if (byte == ':' || byte == '=' || byte == '>') key_ = words_[0];
  }

  // Cells: what `,`, `;`, `|`, tabs and blanks divide a line into.
  void follow_cells(uint8_t byte) {
    if (byte == '\n') {
      above_cells_ = cells_;
      above_count_ = cell_ + 1;
      cell_ = 0;
      cells_[0] = pos_;
    } else if (cell_ + 1 < kMaxCells &&
               (byte == ',' || byte == ';' || byte == '|' || byte == '\t' || byte == ' ')) {
      cells_[++cell_] = pos_;
    }
  }

  // A vote for d: this byte was last seen d bytes ago, and before that another d bytes ago.
  void vote_period(uint8_t byte, SharedPast& past) {
    const uint32_t distance = pos_ + 1 - last_seen_[byte];
    if (last_seen_[byte] != 0 && distance == last_distance_[byte] && distance > 1 &&
        distance <= SharedPast::kMaxPeriod) {
      ++past.period_votes[distance];
    }
    last_distance_[byte] = distance;
    last_seen_[byte] = pos_ + 1;
    if (--past.until_count == 0) {
      past.until_count = SharedPast::kCountEvery;
      past.count_periods();
    }
  }

  static constexpr uint32_t kMaxCells = 64;

  uint32_t begin_, end_, pos_;
  uint64_t older_ = 0;
  uint64_t recent_ = 0;  // the last eight bytes, the newest lowest
  uint32_t word_ = 0;    // hash of the letters of the current word, 0 between words
  std::array<uint32_t, 3> words_{};
  uint32_t line_;       // where this line begins
  uint32_t key_ = 0;    // the word before the last ':', '=' or '>'
  uint32_t shape_ = 0;  // the kinds of the last eight bytes, four bits each
  uint32_t cell_ = 0;   // number of the cell in its line
  uint32_t above_count_ = 0;
  std::array<uint32_t, kMaxCells> cells_{}, above_cells_{};  // where they begin
  std::array<uint32_t, 256> last_seen_{}, last_distance_{};
  bool is_code_;
  X86Decoder x86_;
};

}  // namespace lmzip

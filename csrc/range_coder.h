// range_coder.h: intervals -> bytes -> intervals.  Specified in docs/coder.md, section "The range
// coder"; fixed by tests/vectors/range_coder.json.
//
// A symbol is an interval [lo, lo + freq) of a total 2^bits, 1 <= bits <= 32, chosen anew for every
// call.  First in, first out.  Three things that surprise:
//   - The partition is exact: the interval's ends are floor(range * end / 2^bits) with a 128-bit
//     product, so neighbors touch and nothing of the range is lost to rounding.
//   - A carry runs back into words already written; it ends at the first word, since the whole
//     message is a number below 1.
//   - The end is canonical: one message has one encoding.  The decoder therefore knows exactly
//     whether bytes are missing (short), left over (long) or altered.
//
// Between calls 2^32 <= range < 2^64.  An interval is never empty: floor(range * (lo + freq) /
// 2^bits)
// >= floor(range * lo / 2^bits + 1) as range >= 2^32 >= 2^bits.  So the new range is at least 1,
// and one shift by 32 bits always restores the invariant.
#pragma once
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace lmzip {

__extension__ typedef unsigned __int128 uint128_t;

inline constexpr int kMaxFreqBits = 32;

// floor(range * end / 2^bits); end <= 2^bits.
inline uint64_t scale_range(uint64_t range, uint64_t end, int bits) {
  return static_cast<uint64_t>((static_cast<uint128_t>(range) * end) >> bits);
}

// The last word of a message, and how many of its bytes are written (0 to 4).
struct FinalWord {
  uint64_t
      value;  // the number in [low, low + range), modulo 2^64, with the most trailing zero bytes
  int size;
};

// The least multiple of 2^(64 - 8 * size) at or above low, for the least size with which it lies
// below low + range.  As range >= 2^32, size 4 always does.
inline FinalWord final_word(uint64_t low, uint64_t range) {
  for (int size = 0;; ++size) {
    const uint64_t mask = size == 0 ? ~uint64_t{0} : ~uint64_t{0} >> (8 * size);
    const uint64_t gap = (uint64_t{0} - low) & mask;  // from low up to the multiple
    if (gap < range) return {low + gap, size};
  }
}

class RangeEncoder {
 public:
  // 0 < freq, lo + freq <= 2^bits.
  void encode(uint32_t lo, uint32_t freq, int bits) {
    assert(bits >= 1 && bits <= kMaxFreqBits && freq > 0);
    assert(uint64_t{lo} + freq <= uint64_t{1} << bits);
    const uint64_t begin = scale_range(range_, lo, bits);
    const uint64_t end = scale_range(range_, uint64_t{lo} + freq, bits);
    narrow(begin, end - begin);
  }

  // One binary decision; p1 of 2^bits is the probability of a 1, 0 < p1 < 2^bits.  The same bytes
  // as encode() with the interval [0, p1) for a 1 and [p1, 2^bits) for a 0.
  void encode_bit(bool bit, uint32_t p1, int bits) {
    assert(bits >= 1 && bits <= kMaxFreqBits && p1 > 0 && p1 < uint64_t{1} << bits);
    const uint64_t split = scale_range(range_, p1, bits);
    narrow(bit ? 0 : split, bit ? split : range_ - split);
  }

  // Closes the message and hands it over.  The encoder is then as new.
  std::vector<uint8_t> finish() {
    const FinalWord last = final_word(low_, range_);
    if (last.value < low_) carry();
    words_.push_back(static_cast<uint32_t>(last.value >> 32));
    std::vector<uint8_t> bytes(words_.size() * 4);
    for (size_t i = 0; i < words_.size(); ++i) {
      for (size_t j = 0; j < 4; ++j)
        bytes[4 * i + j] = static_cast<uint8_t>(words_[i] >> (24 - 8 * j));
    }
    bytes.resize(bytes.size() - 4 + static_cast<size_t>(last.size));
    *this = RangeEncoder();
    return bytes;
  }

  // Bytes that finish() would return at most; at least 4 fewer are already certain.
  size_t size_bound() const { return 4 * words_.size() + 4; }

 private:
  void narrow(uint64_t begin, uint64_t size) {
    low_ += begin;
    if (low_ < begin) carry();
    range_ = size;
    if (range_ >> 32 == 0) {
      words_.push_back(static_cast<uint32_t>(low_ >> 32));
      low_ <<= 32;
      range_ <<= 32;
    }
  }

  void carry() {
    size_t i = words_.size();
    do {
      assert(i > 0);
      --i;
    } while (++words_[i] == 0);
  }

  uint64_t low_ = 0;
  uint64_t range_ = ~uint64_t{0};
  std::vector<uint32_t> words_;
};

// Whether a decoder stands exactly at the end of a message.
enum class StreamEnd { kExact, kShort, kLong, kAltered };

// Any bytes may be decoded: nothing is read outside the input, and every call returns.  Reading
// past the end yields zeros and is counted, so the loop needs no check; ask truncated() once per
// block.
class RangeDecoder {
 public:
  RangeDecoder() : RangeDecoder(std::span<const uint8_t>()) {}
  explicit RangeDecoder(std::span<const uint8_t> in) : in_(in) {
    for (int i = 0; i < 2; ++i) value_ = value_ << 32 | next_word();
    // low + range is 2^64 - 1 here, and no message reaches it.
    if (value_ == ~uint64_t{0}) {
      altered_ = true;
      --value_;
    }
  }

  // Where in [0, 2^bits) the next symbol lies: the greatest slot with floor(range * slot / 2^bits)
  // <= code, that is with range * slot < (code + 1) * 2^bits.  Find its interval, then consume().
  uint32_t peek(int bits) const {
    const uint128_t top = ((static_cast<uint128_t>(code()) + 1) << bits) - 1;
#if defined(__x86_64__)
    // code < range, so the quotient is below 2^bits and the divide instruction cannot trap; the
    // compiler would call a library routine for the general case.
    uint64_t quotient = static_cast<uint64_t>(top);
    uint64_t remainder = static_cast<uint64_t>(top >> 64);
    __asm__("divq %2" : "+a"(quotient), "+d"(remainder) : "r"(range_) : "cc");
    return static_cast<uint32_t>(quotient);
#else
    return static_cast<uint32_t>(top / range_);
#endif
  }

  // The interval that contains peek(bits).
  void consume(uint32_t lo, uint32_t freq, int bits) {
    assert(bits >= 1 && bits <= kMaxFreqBits && freq > 0);
    const uint64_t begin = scale_range(range_, lo, bits);
    const uint64_t end = scale_range(range_, uint64_t{lo} + freq, bits);
    assert(begin <= code() && code() < end);
    narrow(begin, end - begin);
  }

  bool decode_bit(uint32_t p1, int bits) {
    assert(bits >= 1 && bits <= kMaxFreqBits && p1 > 0 && p1 < uint64_t{1} << bits);
    const uint64_t split = scale_range(range_, p1, bits);
    const bool bit = code() < split;
    narrow(bit ? 0 : split, bit ? split : range_ - split);
    return bit;
  }

  // True once more was read than any message of this length can need: the encoder wrote a word for
  // each that was read, but for the last two.
  bool truncated() const { return position_ > in_.size() + 8; }

  // Ask after the last symbol: is the input the encoding of exactly what was decoded?
  StreamEnd end() const {
    const FinalWord last = final_word(low_, range_);
    const size_t expected = position_ - 8 + static_cast<size_t>(last.size);
    if (in_.size() < expected) return StreamEnd::kShort;
    if (in_.size() > expected) return StreamEnd::kLong;
    return altered_ || value_ != last.value ? StreamEnd::kAltered : StreamEnd::kExact;
  }

  size_t position() const { return position_; }

 private:
  // value_ is the window of the message that low_ and range_ speak of; low_ <= value_ < low_ +
  // range_ modulo 2^64, kept by consume().
  uint64_t code() const { return value_ - low_; }

  void narrow(uint64_t begin, uint64_t size) {
    low_ += begin;
    range_ = size;
    if (range_ >> 32 == 0) {
      low_ <<= 32;
      range_ <<= 32;
      value_ = value_ << 32 | next_word();
    }
  }

  uint64_t next_word() {
    uint32_t word = 0;
    if (position_ + 4 <= in_.size()) {
      const uint8_t* p = in_.data() + position_;
      word = uint32_t{p[0]} << 24 | uint32_t{p[1]} << 16 | uint32_t{p[2]} << 8 | p[3];
    } else {
      for (size_t i = position_; i < position_ + 4; ++i)
        word = word << 8 | (i < in_.size() ? in_[i] : 0u);
    }
    position_ += 4;
    return word;
  }

  std::span<const uint8_t> in_;
  size_t position_ = 0;  // of the next word; may lie past the end
  uint64_t value_ = 0;
  uint64_t low_ = 0;
  uint64_t range_ = ~uint64_t{0};
  bool altered_ = false;
};

}  // namespace lmzip

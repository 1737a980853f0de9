// history_table.h: hashed contexts -> bit histories, in a fixed amount of memory.
//
// A bucket holds a check byte and the histories of the 15 nodes of one nibble, by their number
// 1..15.  A lookup stays within one cache line of four buckets, whose checks come first; when none
// has the check, the one whose root history has the lowest number (the least seen) is taken over.
// Specified in docs/mixer.md section 5.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "aligned.h"

namespace lmzip {

class HistoryTable {
 public:
  // symbols: bytes of the frame.  A file may ask for far larger tables than they can fill, which
  // would take longer to clear than the frame to decode.
  HistoryTable(int log2_memory, size_t symbols)
      : shift_(32 - (log2_memory - 6)),
        lines_(size_t{1} << log2_memory,
               size_t{1} << log2_memory > kMostTouched * symbols ? Use::kSparse : Use::kAll) {}

  [[gnu::always_inline]] void prefetch(uint32_t hash) const { __builtin_prefetch(line(hash)); }

  // A bucket, of which [1] to [15] are its nodes.
  uint8_t* find(uint32_t hash) {
    uint8_t* const here = lines_.data() + offset(hash);
    const auto check = static_cast<uint8_t>(hash);
    uint32_t checks;
    std::memcpy(&checks, here, 4);
    if constexpr (std::endian::native == std::endian::big) checks = __builtin_bswap32(checks);
    // The lowest byte that is 0 here, the first bucket with the check, sets the lowest bit there.
    const uint32_t differ = checks ^ check * 0x01010101u;
    const uint32_t equal = (differ - 0x01010101u) & ~differ & 0x80808080u;
    if (equal != 0) return bucket(here, static_cast<size_t>(std::countr_zero(equal)) / 8);
    size_t least = 0;
    for (size_t i = 1; i < kBuckets; ++i) {
      if (bucket(here, i)[1] < bucket(here, least)[1]) least = i;
    }
    here[least] = check;
    std::memset(bucket(here, least) + 1, 0, kNodes);
    return bucket(here, least);
  }

  std::span<const uint8_t> bytes() const { return {lines_.data(), lines_.size()}; }

 private:
  static constexpr size_t kBuckets = 4, kNodes = 15;
  static constexpr size_t kMostTouched = 256;  // for a byte of a frame; encoders take up to 128

  size_t offset(uint32_t hash) const { return size_t{hash >> shift_} * kCacheLine; }
  const uint8_t* line(uint32_t hash) const { return lines_.data() + offset(hash); }
  static uint8_t* bucket(uint8_t* line, size_t i) { return line + kBuckets - 1 + kNodes * i; }

  int shift_;
  AlignedArray<uint8_t> lines_;
};

}  // namespace lmzip

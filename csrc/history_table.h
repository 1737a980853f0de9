// history_table.h: hashed contexts -> bit histories, in a fixed amount of memory.
//
// A bucket of 16 bytes holds a check byte and the histories of the 15 nodes of one nibble, by their
// number 1..15.  A lookup stays within one cache line of four buckets; when none has the check, the
// one whose root history has the lowest number (the least seen) is taken over.
// Specified in docs/mixer.md section 5.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <span>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lmzip {

class HistoryTable {
 public:
  explicit HistoryTable(int log2_memory)
      : shift_(32 - (log2_memory - 6)), size_(size_t{1} << log2_memory) {
    base_.reset(static_cast<uint8_t*>(std::aligned_alloc(std::min(size_, kHugePage), size_)));
    if (base_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    if (size_ >= kHugePage) madvise(base_.get(), size_, MADV_HUGEPAGE);  // a tenth faster in all
#endif
    std::memset(base_.get(), 0, size_);
  }

  void prefetch(uint32_t hash) const { __builtin_prefetch(line(hash)); }

  uint8_t* find(uint32_t hash) const {
    uint8_t* const here = line(hash);
    const auto check = static_cast<uint8_t>(hash);
    for (size_t i = 0; i < kLine; i += kBucket) {
      if (here[i] == check) return here + i;
    }
    size_t least = 0;
    for (size_t i = kBucket; i < kLine; i += kBucket) {
      if (here[i + 1] < here[least + 1]) least = i;
    }
    std::memset(here + least, 0, kBucket);
    here[least] = check;
    return here + least;
  }

  std::span<const uint8_t> bytes() const { return {base_.get(), size_}; }

 private:
  static constexpr size_t kHugePage = size_t{1} << 21;
  static constexpr size_t kLine = 64, kBucket = 16;
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };

  uint8_t* line(uint32_t hash) const { return base_.get() + size_t{hash >> shift_} * kLine; }

  int shift_;
  size_t size_;
  std::unique_ptr<uint8_t, Free> base_;
};

}  // namespace lmzip

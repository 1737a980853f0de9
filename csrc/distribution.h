// distribution.h: a row of n numbers, one per symbol -> n integer intervals of total 2^30, each at
// least 1.  Integers only, the same on every machine.  Specified in docs/coder.md, section
// "Distributions"; fixed by tests/vectors/distribution.json.
//
//   numbers -> weights w_i < 2^31      three kinds of number, see RowKind
//   W = sum w_i > 0,  s = max(0, bit_length(W) - 32),  P_i = w_0 + ... + w_{i-1}
//   C_i = i + floor((P_i >> s) * (2^30 - n) / (W >> s)),  so C_0 = 0 and C_n = 2^30
//   symbol i has the interval [C_i, C_{i+1})
//
// (P_i >> s) < 2^32 and 2^30 - n < 2^30, so products stay below 2^62.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace lmzip {

inline constexpr int kFreqBits = 30;
inline constexpr uint32_t kFreqTotal = uint32_t{1} << kFreqBits;
inline constexpr size_t kMaxSymbols = size_t{1} << 20;  // of an alphabet
inline constexpr int kLogitFracBits = 10;               // a logit is a log2 in units of 1/1024
inline constexpr int kExp2Bits = 30;                    // the weight of the greatest logit is 2^30

// What the numbers of a row are.
enum class RowKind {
  kFloat32,   // probabilities, need not sum to 1: scaled by a power of two so that the greatest
  kFloat16,   //   lies in [2^29, 2^30), then floor.  The three others are converted to float32,
  kBfloat16,  //   exactly but for float64, which is rounded to nearest, ties to even.
  kFloat64,
  kLogits,   // int32: d = max - logit; EXP2_TABLE[d mod 1024] >> (d div 1024)
  kWeights,  // uint32 or int32 in [0, 2^31): the weights themselves
};

size_t element_size(RowKind kind);

// Why a row has no distribution.
enum class RowStatus { kOk, kNan, kInfinite, kNegative, kTooLarge, kAllZero };

struct Interval {
  uint32_t lo;
  uint32_t freq;

  // One that the range coder may be given.
  bool valid() const { return freq > 0 && uint64_t{lo} + freq <= kFreqTotal; }
  bool contains(uint32_t slot) const { return slot >= lo && slot - lo < freq; }
  friend bool operator==(const Interval&, const Interval&) = default;
};

struct FoundSymbol {
  size_t symbol;
  Interval interval;
};

struct RowKernels;  // row_kernels.h

// The weights of a row of logits, out[0..n): the greatest logit has 2^30.  n > 0.
void logits_to_weights(const int32_t* logits, size_t n, uint32_t* out);

// The distribution of one row at a time; assign() may be called again and again, and allocates only
// when n grows.  The row must outlive the questions asked about it, and stay the same: the answers
// read a part of it again.  If another thread writes to it, interval() and find() may return what
// is no interval, but touch no other memory.
//
// Sums are kept for every kBlock symbols only: an encoder needs two of the n + 1 values C_i, and a
// decoder finds its symbol by its block.
class Distribution {
 public:
  static constexpr size_t kBlock = 32;

  Distribution();
  Distribution(const Distribution&) = delete;  // row_ may point into widened_
  Distribution& operator=(const Distribution&) = delete;

  // 1 <= n <= kMaxSymbols.  On any status but kOk, bad_symbol() is the first symbol at fault.
  RowStatus assign(RowKind kind, const void* row, size_t n);
  size_t bad_symbol() const { return bad_symbol_; }

  // symbol < n
  Interval interval(size_t symbol) const;

  // The symbol with lo <= slot < lo + freq; slot < 2^30.
  FoundSymbol find(uint32_t slot) const;

  // All n + 1 values C_i.
  void cumulative(uint32_t* out) const;

  // W, the sum of all weights; and the greatest logit, which weighs 2^30.
  uint64_t sum() const { return prefix_[(n_ + kBlock - 1) / kBlock]; }
  int32_t top_logit() const { return static_cast<int32_t>(top_); }

  // Calls f, in order, with each symbol whose weight is W / 2^shift or more; shift <= 12.
  template <typename F>
  void for_likely(int shift, F&& f) const {
    const uint64_t total = sum();
    for (size_t block = 0; block * kBlock < n_; ++block) {
      if ((prefix_[block + 1] - prefix_[block]) << shift < total) continue;
      uint32_t weights[kBlock];
      weigh_block(block, weights);
      const size_t begin = block * kBlock, size = n_ - begin < kBlock ? n_ - begin : kBlock;
      for (size_t i = 0; i < size; ++i) {
        if (uint64_t{weights[i]} << shift >= total) f(begin + i);
      }
    }
  }

 private:
  RowStatus assign_float(const float* row, size_t n);
  RowStatus assign_logits(const int32_t* row, size_t n);
  RowStatus assign_weights(const uint32_t* row, size_t n);
  const float* widen(RowKind kind, const void* row, size_t n);
  RowStatus fail(RowStatus status, size_t symbol);
  void weigh_block(size_t block, uint32_t* weights) const;
  uint32_t cumulative_at(uint64_t prefix, size_t symbol) const;
  bool starts_by(uint32_t slot, uint64_t prefix, size_t symbol) const;

  const RowKernels& kernels_;
  RowKind kind_ = RowKind::kWeights;
  const void* row_ = nullptr;
  size_t n_ = 0;
  uint32_t top_ = 0;    // bits of the greatest float, or the greatest logit
  int shift_ = 0;       // s
  uint64_t total_ = 1;  // W >> s
  uint64_t span_ = 0;   // 2^30 - n
  size_t bad_symbol_ = 0;
  std::vector<uint64_t> prefix_;  // P_0, P_32, P_64, ..., and W
  std::vector<float> widened_;
};

}  // namespace lmzip

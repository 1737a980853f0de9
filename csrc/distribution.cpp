// distribution.cpp: see distribution.h.
#include "distribution.h"

#include <algorithm>
#include <bit>
#include <cassert>

#include "row_kernels.h"

namespace lmzip {
namespace {

static_assert(Distribution::kBlock == kRowBlock);

}  // namespace

size_t element_size(RowKind kind) {
  switch (kind) {
    case RowKind::kFloat16:
    case RowKind::kBfloat16:
      return 2;
    case RowKind::kFloat64:
      return 8;
    default:
      return 4;
  }
}

void logits_to_weights(const int32_t* logits, size_t n, uint32_t* out) {
  const RowKernels& kernels = row_kernels();
  kernels.logit_weights(logits, n, kernels.logit_top(logits, n), out);
}

Distribution::Distribution() : kernels_(row_kernels()) {}

RowStatus Distribution::fail(RowStatus status, size_t symbol) {
  bad_symbol_ = symbol;
  return status;
}

RowStatus Distribution::assign(RowKind kind, const void* row, size_t n) {
  assert(n >= 1 && n <= kMaxSymbols);
  n_ = n;
  span_ = kFreqTotal - n;
  const size_t blocks = (n + kBlock - 1) / kBlock;
  if (prefix_.size() < blocks + 1) prefix_.resize(blocks + 1);
  RowStatus status;
  switch (kind) {
    case RowKind::kLogits:
      status = assign_logits(static_cast<const int32_t*>(row), n);
      break;
    case RowKind::kWeights:
      status = assign_weights(static_cast<const uint32_t*>(row), n);
      break;
    default:
      status = assign_float(widen(kind, row, n), n);
  }
  if (status != RowStatus::kOk) return status;
  const uint64_t sum = prefix_[blocks];
  if (sum == 0) return fail(RowStatus::kAllZero, 0);
  shift_ = std::max(0, static_cast<int>(std::bit_width(sum)) - 32);
  total_ = sum >> shift_;
  return RowStatus::kOk;
}

const float* Distribution::widen(RowKind kind, const void* row, size_t n) {
  if (kind == RowKind::kFloat32) return static_cast<const float*>(row);
  if (widened_.size() < n) widened_.resize(n);
  switch (kind) {
    case RowKind::kFloat16:
      kernels_.widen_float16(static_cast<const uint16_t*>(row), n, widened_.data());
      break;
    case RowKind::kBfloat16:
      kernels_.widen_bfloat16(static_cast<const uint16_t*>(row), n, widened_.data());
      break;
    default:
      kernels_.round_float64(static_cast<const double*>(row), n, widened_.data());
  }
  return widened_.data();
}

RowStatus Distribution::assign_float(const float* row, size_t n) {
  kind_ = RowKind::kFloat32;
  row_ = row;
  top_ = kernels_.float_top(row, n);
  if (top_ > kFloatMax) {  // rare: -0.0, which is fine, or a number that is not
    top_ = 0;
    for (size_t i = 0; i < n; ++i) {
      const auto bits = std::bit_cast<uint32_t>(row[i]);
      if ((bits & 0x7FFFFFFF) > 0x7F800000) return fail(RowStatus::kNan, i);
      if (bits == 0x80000000) continue;
      if (bits >> 31) return fail(RowStatus::kNegative, i);
      if (bits == 0x7F800000) return fail(RowStatus::kInfinite, i);
      top_ = std::max(top_, bits);
    }
  }
  kernels_.float_prefix(row, n, top_, prefix_.data());
  return RowStatus::kOk;
}

RowStatus Distribution::assign_logits(const int32_t* row, size_t n) {
  kind_ = RowKind::kLogits;
  row_ = row;
  const int32_t top = kernels_.logit_top(row, n);
  top_ = static_cast<uint32_t>(top);
  kernels_.logit_prefix(row, n, top, prefix_.data());
  return RowStatus::kOk;
}

RowStatus Distribution::assign_weights(const uint32_t* row, size_t n) {
  kind_ = RowKind::kWeights;
  row_ = row;
  if (kernels_.weight_prefix(row, n, prefix_.data()) >> 31 == 0) return RowStatus::kOk;
  const uint32_t* bad = std::find_if(row, row + n, [](uint32_t w) { return w >> 31 != 0; });
  return fail(RowStatus::kTooLarge, static_cast<size_t>(bad - row));
}

void Distribution::weigh_block(size_t block, uint32_t* weights) const {
  const size_t begin = block * kBlock;
  const size_t size = std::min(kBlock, n_ - begin);
  switch (kind_) {
    case RowKind::kLogits:
      kernels_.logit_weights(static_cast<const int32_t*>(row_) + begin, size,
                             static_cast<int32_t>(top_), weights);
      break;
    case RowKind::kWeights:
      std::copy_n(static_cast<const uint32_t*>(row_) + begin, size, weights);
      break;
    default:
      kernels_.float_weights(static_cast<const float*>(row_) + begin, size, top_, weights);
  }
}

uint32_t Distribution::cumulative_at(uint64_t prefix, size_t symbol) const {
  return static_cast<uint32_t>(symbol + (prefix >> shift_) * span_ / total_);
}

// C_symbol <= slot, without the division: floor(x / total) <= slot - symbol is the same as
// x < (slot - symbol + 1) * total.
bool Distribution::starts_by(uint32_t slot, uint64_t prefix, size_t symbol) const {
  const int64_t room = static_cast<int64_t>(slot) - static_cast<int64_t>(symbol) + 1;
  return static_cast<int64_t>((prefix >> shift_) * span_) < room * static_cast<int64_t>(total_);
}

Interval Distribution::interval(size_t symbol) const {
  assert(symbol < n_);
  const size_t block = symbol / kBlock;
  uint32_t weights[kBlock];
  weigh_block(block, weights);
  uint64_t prefix = prefix_[block];
  for (size_t i = 0; i < symbol % kBlock; ++i) prefix += weights[i];
  const uint32_t lo = cumulative_at(prefix, symbol);
  return {lo, cumulative_at(prefix + weights[symbol % kBlock], symbol + 1) - lo};
}

FoundSymbol Distribution::find(uint32_t slot) const {
  assert(slot < kFreqTotal);
  // The last block that starts by slot; C_0 = 0, so there is one.
  size_t block = 0;
  for (size_t count = (n_ + kBlock - 1) / kBlock; count > 1;) {
    const size_t half = count / 2;
    block += starts_by(slot, prefix_[block + half], (block + half) * kBlock) ? half : 0;
    count -= half;
  }
  uint32_t weights[kBlock];
  weigh_block(block, weights);
  size_t symbol = block * kBlock;
  const size_t last = std::min(symbol + kBlock, n_) - 1;
  uint64_t prefix = prefix_[block];
  for (; symbol < last; ++symbol) {
    const uint64_t next = prefix + weights[symbol % kBlock];
    if (!starts_by(slot, next, symbol + 1)) break;
    prefix = next;
  }
  const uint32_t lo = cumulative_at(prefix, symbol);
  const uint32_t hi = cumulative_at(prefix + weights[symbol % kBlock], symbol + 1);
  return {symbol, {lo, hi - lo}};
}

void Distribution::cumulative(uint32_t* out) const {
  uint32_t weights[kBlock];
  uint64_t prefix = 0;
  for (size_t symbol = 0; symbol < n_; ++symbol) {
    if (symbol % kBlock == 0) weigh_block(symbol / kBlock, weights);
    out[symbol] = cumulative_at(prefix, symbol);
    prefix += weights[symbol % kBlock];
  }
  out[n_] = cumulative_at(prefix, n_);
}

}  // namespace lmzip

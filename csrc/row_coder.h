// row_coder.h: whole tensors of rows, coded in lanes.
//
// A block has steps x lanes rows, one symbol each.  Lane l of the block belongs to the coder
// coders[lane_map[l]], and codes its symbols in the order of steps.  Lanes are independent, so the
// bytes do not depend on the number of threads, nor on how a message is cut into blocks.
//
// The rows are the caller's memory, which another thread of its may overwrite during a call.  That
// gives a DistributionError or wrong symbols, but never hands the range coder what is no interval.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "distribution.h"
#include "range_coder.h"

namespace lmzip {

struct RowBlock {
  RowKind kind;
  const void* data;
  ptrdiff_t step_stride;  // in bytes; the numbers of a row lie side by side
  ptrdiff_t lane_stride;
  size_t steps;
  size_t lanes;
  size_t symbols;  // n, the size of the alphabet

  const void* row(size_t step, size_t lane) const {
    return static_cast<const char*>(data) + static_cast<ptrdiff_t>(step) * step_stride +
           static_cast<ptrdiff_t>(lane) * lane_stride;
  }
};

// The interval of symbols[step * lanes + lane] for every row, into out in the same order.
// Throws DistributionError that names the first bad row or symbol in that order.
void row_intervals(const RowBlock& block, const int64_t* symbols, int threads, Interval* out);

// Throws as row_intervals() does; the coders are then as before.
void encode_rows(std::span<RangeEncoder> coders, std::span<const size_t> lane_map,
                 const RowBlock& block, const int64_t* symbols, int threads);

// steps x lanes intervals of total 2^30, for rows that were turned into intervals elsewhere.
void encode_intervals(std::span<RangeEncoder> coders, std::span<const size_t> lane_map,
                      const Interval* intervals, size_t steps);

// Throws DistributionError or TruncatedError; the coders are then as before.
void decode_rows(std::span<RangeDecoder> coders, std::span<const size_t> lane_map,
                 const RowBlock& block, int threads, int64_t* symbols);

}  // namespace lmzip

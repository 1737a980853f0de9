// row_coder.cpp: see row_coder.h.
#include "row_coder.h"

#include <algorithm>
#include <string>

#include "cpu.h"
#include "errors.h"
#include "parallel.h"

namespace lmzip {
namespace {

constexpr size_t kNoRow = ~size_t{0};

// What stopped a thread; kNoRow if nothing did.
struct Failure {
  size_t row = kNoRow;  // step * lanes + lane
  RowStatus status = RowStatus::kOk;
  size_t symbol = 0;
  enum { kRow, kSymbol, kTruncated, kChanged } what = kRow;
};

// Cuts [0, count) into one piece a thread and calls work(begin, end, failure) for each.  Returns
// the failure with the lowest row, so that the message too does not depend on the threads.
template <typename Work>
Failure in_parallel(size_t count, int threads, Work work) {
  const size_t pieces =
      std::clamp<size_t>(static_cast<size_t>(std::max(threads, 1)), 1, std::max<size_t>(count, 1));
  std::vector<Failure> failures(pieces);
  Job job(pieces, {});
  run_threads(job,
              [&](size_t i) { work(count * i / pieces, count * (i + 1) / pieces, failures[i]); });
  return *std::min_element(failures.begin(), failures.end(),
                           [](const Failure& a, const Failure& b) { return a.row < b.row; });
}

const char* describe(RowStatus status) {
  switch (status) {
    case RowStatus::kNan:
      return "is NaN";
    case RowStatus::kInfinite:
      return "is infinite, or too large for float32";
    case RowStatus::kNegative:
      return "is negative";
    case RowStatus::kTooLarge:
      return "is negative, or 2^31 or more";
    default:
      return "is fine";
  }
}

std::string place(const RowBlock& block, size_t row) {
  std::string text = "step " + std::to_string(row / block.lanes);
  if (block.lanes > 1) text += ", lane " + std::to_string(row % block.lanes);
  return text;
}

[[noreturn]] void throw_failure(const RowBlock& block, const Failure& failure,
                                const int64_t* symbols) {
  const std::string where = place(block, failure.row);
  if (failure.what == Failure::kTruncated) {
    throw TruncatedError(where + ": the data end before this symbol; they are cut short, or the " +
                         "distributions differ from those of the encoder");
  }
  if (failure.what == Failure::kSymbol) {
    throw DistributionError(where + ": symbol " + std::to_string(symbols[failure.row]) +
                            " is outside 0.." + std::to_string(block.symbols - 1));
  }
  if (failure.what == Failure::kChanged) {
    throw DistributionError(where +
                            ": the row changed while it was read; distributions must stay "
                            "as they are until the call returns");
  }
  if (failure.status == RowStatus::kAllZero) {
    throw DistributionError(where +
                            ": all numbers of the row are zero; at least one must be positive");
  }
  throw DistributionError(where + ": the number of symbol " + std::to_string(failure.symbol) + " " +
                          describe(failure.status));
}

}  // namespace

void row_intervals(const RowBlock& block, const int64_t* symbols, int threads, Interval* out) {
  (void)active_kernel();  // throws here, and not in a thread, if LMZIP_KERNEL is wrong
  const Failure failure =
      in_parallel(block.steps * block.lanes, threads, [&](size_t begin, size_t end, Failure& fail) {
        Distribution distribution;
        for (size_t row = begin; row < end; ++row) {
          const int64_t symbol = symbols[row];
          if (symbol < 0 || static_cast<uint64_t>(symbol) >= block.symbols) {
            fail = {row, RowStatus::kOk, 0, Failure::kSymbol};
            return;
          }
          const RowStatus status = distribution.assign(
              block.kind, block.row(row / block.lanes, row % block.lanes), block.symbols);
          if (status != RowStatus::kOk) {
            fail = {row, status, distribution.bad_symbol(), Failure::kRow};
            return;
          }
          const Interval interval = distribution.interval(static_cast<size_t>(symbol));
          if (!interval.valid()) {
            fail = {row, RowStatus::kOk, 0, Failure::kChanged};
            return;
          }
          out[row] = interval;
        }
      });
  if (failure.row != kNoRow) throw_failure(block, failure, symbols);
}

void encode_intervals(std::span<RangeEncoder> coders, std::span<const size_t> lane_map,
                      const Interval* intervals, size_t steps) {
  for (size_t lane = 0; lane < lane_map.size(); ++lane) {
    RangeEncoder& coder = coders[lane_map[lane]];
    for (size_t step = 0; step < steps; ++step) {
      const Interval interval = intervals[step * lane_map.size() + lane];
      coder.encode(interval.lo, interval.freq, kFreqBits);
    }
  }
}

void encode_rows(std::span<RangeEncoder> coders, std::span<const size_t> lane_map,
                 const RowBlock& block, const int64_t* symbols, int threads) {
  std::vector<Interval> intervals(block.steps * block.lanes);
  row_intervals(block, symbols, threads, intervals.data());
  encode_intervals(coders, lane_map, intervals.data(), block.steps);
}

void decode_rows(std::span<RangeDecoder> coders, std::span<const size_t> lane_map,
                 const RowBlock& block, int threads, int64_t* symbols) {
  (void)active_kernel();
  std::vector<RangeDecoder> advanced;
  for (const size_t coder : lane_map) advanced.push_back(coders[coder]);
  const Failure failure =
      in_parallel(block.lanes, threads, [&](size_t begin, size_t end, Failure& fail) {
        Distribution distribution;
        // Step by step and not lane by lane, so that rows are read in the order in which they lie.
        for (size_t i = 0; i < block.steps * (end - begin); ++i) {
          const size_t lane = begin + i % (end - begin);
          const size_t row = i / (end - begin) * block.lanes + lane;
          const RowStatus status =
              distribution.assign(block.kind, block.row(row / block.lanes, lane), block.symbols);
          if (status != RowStatus::kOk) {
            fail = {row, status, distribution.bad_symbol(), Failure::kRow};
            return;
          }
          RangeDecoder& coder = advanced[lane];
          const uint32_t slot = coder.peek(kFreqBits);
          const FoundSymbol found = distribution.find(slot);
          if (!found.interval.valid() || !found.interval.contains(slot)) {
            fail = {row, RowStatus::kOk, 0, Failure::kChanged};
            return;
          }
          coder.consume(found.interval.lo, found.interval.freq, kFreqBits);
          if (coder.truncated()) {
            fail = {row, RowStatus::kOk, 0, Failure::kTruncated};
            return;
          }
          symbols[row] = static_cast<int64_t>(found.symbol);
        }
      });
  if (failure.row != kNoRow) throw_failure(block, failure, symbols);
  for (size_t lane = 0; lane < lane_map.size(); ++lane) coders[lane_map[lane]] = advanced[lane];
}

}  // namespace lmzip

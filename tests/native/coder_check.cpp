// coder_check.cpp: range coder and distributions under the sanitizers, with guard pages behind
// every input: round trips, any bytes, every kernel against the portable one.
#include <signal.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <new>
#include <string>

#include "check.h"
#include "cpu.h"
#include "errors.h"
#include "row_coder.h"

namespace {

size_t most_memory = ~size_t{0};  // that an allocation gets

}  // namespace

[[gnu::noinline]] void* operator new(size_t size) {
  void* const memory = size > most_memory ? nullptr : std::malloc(std::max<size_t>(size, 1));
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace lmzip {
namespace {

using test::GuardedBytes;
using test::Random;

struct Coded {
  uint32_t lo, freq;
  int bits;
};

Coded random_interval(Random& random) {
  const int bits = 1 + static_cast<int>(random.below(32));
  const uint64_t total = uint64_t{1} << bits;
  const uint64_t freq =
      std::clamp<uint64_t>(random.next() >> (32 + random.below(32)), 1, std::min(total, total - 1));
  return {static_cast<uint32_t>(random.below(total - freq + 1)), static_cast<uint32_t>(freq), bits};
}

void check_round_trips() {
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    Random random(seed);
    std::vector<Coded> message(random.below(200));
    for (Coded& coded : message) coded = random_interval(random);
    RangeEncoder encoder;
    for (const Coded& coded : message) encoder.encode(coded.lo, coded.freq, coded.bits);
    const std::vector<uint8_t> bytes = encoder.finish();
    const GuardedBytes guarded(bytes.data(), bytes.size());
    RangeDecoder decoder({guarded.data(), guarded.size()});
    for (const Coded& coded : message) {
      const uint32_t slot = decoder.peek(coded.bits);
      CHECK(slot >= coded.lo && slot - coded.lo < coded.freq);
      decoder.consume(coded.lo, coded.freq, coded.bits);
    }
    CHECK(!decoder.truncated());
    CHECK(decoder.end() == StreamEnd::kExact);
  }
}

// Astride of the number 1/2 the words are 0x7fffffff, 0xffffffff, ...; the last interval lies above
// it, and its carry runs through them all.
void check_long_carry() {
  for (int steps = 1; steps < 60; ++steps) {
    std::vector<uint8_t> below_half(static_cast<size_t>(4 * steps + 8), 0xFF);
    below_half[0] = 0x7F;
    RangeDecoder guide(below_half);
    std::vector<Coded> message;
    for (int i = 0; i < steps; ++i) {
      const uint32_t slot = guide.peek(16);
      message.push_back({slot, slot < 65535 ? 2u : 1u, 16});
      guide.consume(slot, message.back().freq, 16);
    }
    message.push_back({guide.peek(16) + 1, 1, 16});
    RangeEncoder encoder;
    for (const Coded& coded : message) encoder.encode(coded.lo, coded.freq, coded.bits);
    const std::vector<uint8_t> bytes = encoder.finish();
    CHECK(bytes[0] == 0x80);
    RangeDecoder decoder(bytes);
    for (const Coded& coded : message) {
      const uint32_t slot = decoder.peek(coded.bits);
      CHECK(slot >= coded.lo && slot - coded.lo < coded.freq);
      decoder.consume(coded.lo, coded.freq, coded.bits);
    }
    CHECK(decoder.end() == StreamEnd::kExact);
  }
}

void check_ends() {
  RangeEncoder encoder;
  for (uint32_t i = 0; i < 50; ++i) encoder.encode(i * 7, 1, 9);
  const std::vector<uint8_t> bytes = encoder.finish();
  const auto end_of = [](const std::vector<uint8_t>& data) {
    RangeDecoder decoder(data);
    for (uint32_t i = 0; i < 50; ++i) decoder.consume(decoder.peek(9), 1, 9);
    return decoder.end();
  };
  CHECK(end_of(bytes) == StreamEnd::kExact);
  std::vector<uint8_t> longer = bytes;
  longer.push_back(0);
  CHECK(end_of(longer) == StreamEnd::kLong);
  CHECK(end_of({bytes.begin(), bytes.begin() + 40}) == StreamEnd::kShort);

  // Of the numbers from 1/2 on, an encoder takes 1/2, which is 0x80.
  for (int first = 0x80; first <= 0xFF; ++first) {
    const std::vector<uint8_t> data = {static_cast<uint8_t>(first)};
    RangeDecoder decoder(data);
    CHECK(!decoder.decode_bit(1, 1));
    CHECK(decoder.end() == (first == 0x80 ? StreamEnd::kExact : StreamEnd::kAltered));
  }
}

void check_any_bytes_decode() {
  for (uint64_t seed = 0; seed < 5000; ++seed) {
    Random random(seed);
    std::vector<uint8_t> bytes(random.below(40));
    const bool ones = random.below(4) == 0;
    for (uint8_t& byte : bytes) byte = ones ? 0xFF : static_cast<uint8_t>(random.next());
    const GuardedBytes guarded(bytes.data(), bytes.size());
    RangeDecoder decoder({guarded.data(), guarded.size()});
    RangeEncoder encoder;
    for (int i = 0; i < 100; ++i) {
      const int bits = 1 + static_cast<int>(random.below(32));
      if (random.below(2) == 0) {
        const auto p1 = static_cast<uint32_t>(1 + random.below((uint64_t{1} << bits) - 1));
        encoder.encode_bit(decoder.decode_bit(p1, bits), p1, bits);
      } else {
        const uint32_t slot = decoder.peek(bits);
        decoder.consume(slot, 1, bits);
        encoder.encode(slot, 1, bits);
      }
    }
    CHECK((decoder.end() == StreamEnd::kExact) == (encoder.finish() == bytes));
  }
}

// Numbers of the kind, as they come and with the corners mixed in.
template <typename Number>
std::vector<Number> random_row(Random& random, RowKind kind, size_t n) {
  std::vector<Number> row(n);
  const uint64_t mode = random.below(4);
  for (Number& number : row) {
    const auto bits = static_cast<uint32_t>(random.next());
    if (kind == RowKind::kLogits) {
      number = std::bit_cast<Number>(mode == 0 ? bits : mode == 1 ? 7u : bits % 40000);
    } else if (kind == RowKind::kWeights) {
      number = std::bit_cast<Number>(mode == 0 ? bits >> 1 : mode == 1 ? 0x7FFFFFFF : bits % 3);
    } else {
      const uint32_t limits[] = {0x7F800000, 0x00800000, 0x12000000, 0x3F800000};
      number =
          std::bit_cast<Number>(mode == 3 ? 0x3E000000 + bits % 0x02000000 : bits % limits[mode]);
    }
  }
  if (kind != RowKind::kLogits)
    row[random.below(n)] = std::bit_cast<Number>(0x01000000u);  // not all zero
  return row;
}

std::vector<uint32_t> cumulative_with(Kernel kernel, RowKind kind, const void* row, size_t n) {
  set_active_kernel(kernel_name(kernel));
  Distribution distribution;
  CHECK(distribution.assign(kind, row, n) == RowStatus::kOk);
  std::vector<uint32_t> ends(n + 1);
  distribution.cumulative(ends.data());
  CHECK(ends.front() == 0 && ends.back() == kFreqTotal);
  for (size_t symbol = 0; symbol < n; ++symbol) {
    CHECK(ends[symbol] < ends[symbol + 1]);
    const Interval interval = distribution.interval(symbol);
    CHECK(interval.lo == ends[symbol] && interval.freq == ends[symbol + 1] - ends[symbol]);
    for (const uint32_t slot : {ends[symbol], ends[symbol + 1] - 1}) {
      const FoundSymbol found = distribution.find(slot);
      CHECK(found.symbol == symbol && found.interval == interval);
    }
  }
  return ends;
}

template <typename Number>
void check_kernels_agree(RowKind kind) {
  for (uint64_t seed = 0; seed < 400; ++seed) {
    Random random(seed);
    const size_t n = 1 + random.below(seed % 10 == 0 ? 700 : 70);
    const std::vector<Number> row = random_row<Number>(random, kind, n);
    const GuardedBytes guarded(row.data(), n * sizeof(Number));
    const auto expected = cumulative_with(Kernel::kPortable, kind, guarded.data(), n);
    for (const Kernel kernel : usable_kernels()) {
      CHECK(cumulative_with(kernel, kind, guarded.data(), n) == expected);
    }
  }
  set_active_kernel("");
}

// float16, bfloat16 and float64: any bits at all; the status and the intervals agree.
template <typename Number>
void check_conversions_agree(RowKind kind) {
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    Random random(seed);
    const size_t n = 1 + random.below(20);
    std::vector<Number> row(n);
    const int shift = random.below(3) == 0 ? 0 : 2;  // by 2: neither negative nor infinite
    // Of a float64, 29 bits are rounded away: 1 and 28 zeros are a tie.
    const uint64_t ties = sizeof(Number) == 8 && random.below(2) == 0 ? 0x1FFFFFFF : 0;
    for (Number& number : row) {
      number = static_cast<Number>(static_cast<Number>(random.next()) >> shift);
      if (ties != 0) number = static_cast<Number>((number & ~ties) | 0x10000000);
    }
    const GuardedBytes guarded(row.data(), n * sizeof(Number));
    std::vector<std::vector<uint32_t>> results;
    for (const Kernel kernel : usable_kernels()) {
      set_active_kernel(kernel_name(kernel));
      Distribution distribution;
      std::vector<uint32_t> ends(n + 1, 0);
      const RowStatus status = distribution.assign(kind, guarded.data(), n);
      if (status == RowStatus::kOk) distribution.cumulative(ends.data());
      ends.push_back(static_cast<uint32_t>(status));
      ends.push_back(status == RowStatus::kOk ? 0
                                              : static_cast<uint32_t>(distribution.bad_symbol()));
      results.push_back(ends);
    }
    for (const auto& result : results) CHECK(result == results.front());
  }
  set_active_kernel("");
}

void check_lanes_and_threads() {
  constexpr size_t kSteps = 40, kLanes = 7, kSymbols = 50;
  Random random(1);
  std::vector<uint32_t> rows(kSteps * kLanes * kSymbols);
  for (uint32_t& weight : rows) weight = static_cast<uint32_t>(random.below(1000));
  const GuardedBytes guarded(rows.data(), rows.size() * 4);
  const RowBlock block = {RowKind::kWeights, guarded.data(), kLanes * kSymbols * 4,
                          kSymbols * 4,      kSteps,         kLanes,
                          kSymbols};
  std::vector<int64_t> symbols(kSteps * kLanes);
  for (int64_t& symbol : symbols) symbol = static_cast<int64_t>(random.below(kSymbols));
  const std::vector<size_t> lane_map = {6, 0, 5, 1, 4, 2, 3};
  std::vector<std::vector<uint8_t>> expected;
  for (int threads = 1; threads <= 9; threads += 2) {
    std::vector<RangeEncoder> encoders(kLanes);
    encode_rows(encoders, lane_map, block, symbols.data(), threads);
    std::vector<std::vector<uint8_t>> payloads;
    for (RangeEncoder& encoder : encoders) payloads.push_back(encoder.finish());
    if (threads == 1) expected = payloads;
    CHECK(payloads == expected);
    std::vector<RangeDecoder> decoders;
    for (const auto& payload : payloads) decoders.emplace_back(payload);
    std::vector<int64_t> decoded(symbols.size());
    RowBlock half = block;  // in two halves, so that the second goes on where the first ended
    half.steps = kSteps / 2;
    decode_rows(decoders, lane_map, half, threads, decoded.data());
    half.data = block.row(kSteps / 2, 0);
    decode_rows(decoders, lane_map, half, threads, decoded.data() + kSteps / 2 * kLanes);
    CHECK(decoded == symbols);
    for (const RangeDecoder& decoder : decoders) CHECK(decoder.end() == StreamEnd::kExact);
    try {
      for (int i = 0; i < 10; ++i) decode_rows(decoders, lane_map, block, threads, decoded.data());
      CHECK(false);
    } catch (const TruncatedError&) {
    }
  }
}

// --- rows that change while they are read ---

// Weights of 1 on two pages, of which the first touch of the second lets the first change: a pass
// over the row has then read the first already, and what is read again is something else.
class ChangingRow {
 public:
  ChangingRow() {
    base_ = static_cast<uint8_t*>(
        mmap(nullptr, 2 * page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK(base_ != MAP_FAILED);
    std::fill_n(weights(), size(), 1);
    CHECK(mprotect(base_ + page_, page_, PROT_NONE) == 0);
    current_ = this;
    struct sigaction action = {};
    action.sa_handler = [](int) { current_->change(); };
    CHECK(sigaction(SIGSEGV, &action, &before_) == 0);
  }
  ChangingRow(const ChangingRow&) = delete;
  ChangingRow& operator=(const ChangingRow&) = delete;
  ~ChangingRow() {
    sigaction(SIGSEGV, &before_, nullptr);
    munmap(base_, 2 * page_);
  }

  RowBlock block() const { return {RowKind::kWeights, base_, 0, 0, 1, 1, size()}; }

 private:
  uint32_t* weights() const { return reinterpret_cast<uint32_t*>(base_); }
  size_t size() const { return 2 * page_ / sizeof(uint32_t); }
  void change() {
    CHECK(mprotect(base_ + page_, page_, PROT_READ | PROT_WRITE) == 0);
    std::fill_n(weights(), Distribution::kBlock, 0x7FFFFFFF);
  }

  static inline ChangingRow* current_;
  const size_t page_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  uint8_t* base_;
  struct sigaction before_;
};

template <typename Call>
void check_says_changed(Call call) {
  try {
    call();
    CHECK(false);
  } catch (const DistributionError& error) {
    CHECK(std::string(error.what()).find("the row changed while it was read") != std::string::npos);
  }
}

void check_changing_rows() {
  const std::vector<size_t> lane_map = {0};
  const std::vector<uint8_t> data(20, 0);  // slot 0, in the block that changes
  for (const Kernel kernel : usable_kernels()) {
    set_active_kernel(kernel_name(kernel));
    {
      const ChangingRow row;
      const int64_t symbol = 5;
      std::vector<RangeEncoder> encoders(1);
      check_says_changed([&] { encode_rows(encoders, lane_map, row.block(), &symbol, 1); });
      CHECK(encoders[0].finish().empty());
    }
    {
      const ChangingRow row;
      int64_t symbol;
      std::vector<RangeDecoder> decoders = {RangeDecoder(data)};
      check_says_changed([&] { decode_rows(decoders, lane_map, row.block(), 1, &symbol); });
      CHECK(decoders[0].position() == 8);
    }
  }
  set_active_kernel("");
}

// Memory that ends in one of several threads is the caller's bad_alloc.
void check_memory_ends() {
  constexpr size_t kSymbols = 1 << 16, kLanes = 4;
  const std::vector<uint32_t> row(kSymbols, 1);
  const RowBlock block = {RowKind::kWeights, row.data(), 0, 0, 1, kLanes, kSymbols};
  const std::vector<int64_t> symbols(kLanes);
  std::vector<Interval> intervals(kLanes);
  bool thrown = false;
  most_memory = kSymbols / 8;  // sums of blocks take twice as much
  try {
    row_intervals(block, symbols.data(), kLanes, intervals.data());
  } catch (const std::bad_alloc&) {
    thrown = true;
  }
  most_memory = ~size_t{0};
  CHECK(thrown);
}

}  // namespace
}  // namespace lmzip

int main() {
  using lmzip::RowKind;
  lmzip::check_round_trips();
  lmzip::check_long_carry();
  lmzip::check_ends();
  lmzip::check_any_bytes_decode();
  lmzip::check_kernels_agree<float>(RowKind::kFloat32);
  lmzip::check_kernels_agree<int32_t>(RowKind::kLogits);
  lmzip::check_kernels_agree<uint32_t>(RowKind::kWeights);
  lmzip::check_conversions_agree<uint16_t>(RowKind::kFloat16);
  lmzip::check_conversions_agree<uint16_t>(RowKind::kBfloat16);
  lmzip::check_conversions_agree<uint64_t>(RowKind::kFloat64);
  lmzip::check_lanes_and_threads();
  lmzip::check_changing_rows();
  lmzip::check_memory_ends();
  std::puts("coder_check: ok");
  return 0;
}

// mixer.cpp: see mixer.h.  One predict-and-learn loop serves encoder and decoder, so they cannot
// differ; only `Coder` knows the direction.
#include "mixer.h"

#include <bit>
#include <cassert>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "adaptive_map.h"
#include "bit_history.h"
#include "cpu.h"
#include "logistic.h"
#include "match_model.h"
#include "mix_kernels.h"
#include "mixer_lane.h"
#include "mixer_tune.h"

namespace lmzip {
namespace {

enum class Context {
  kOrder1,
  kOrder2,
  kOrder3,
  kOrder4,
  kOrder5,
  kOrder6,
  kOrder8,
  kWord,
  kWordPair,
  kWordSkip,
  kWordOrder1,
  kKey,
  kShape,
  kColumn,
  kAbove,
  kField,
  kLineStart,
  kAfterByte,
  kAfterPair,
  kExpected,
  kSparse2,
  kSparse3,
  kSparse4,
  kSparse23,
  kSparse34,
  kSparse13,
  kSparse12High,
  kRecordAbove,
  kRecordAbove1,
  kRecordColumn,
  kRecordTwo,
  kRecordColumn1,
  kPosition4,
};

struct TextProfile {
  static constexpr Context kContexts[] = {
      Context::kOrder1,    Context::kOrder2, Context::kOrder3,   Context::kOrder4,
      Context::kOrder5,    Context::kOrder6, Context::kWord,     Context::kWordPair,
      Context::kAfterPair, Context::kField,  Context::kExpected,
  };
};
struct BinaryProfile {
  static constexpr Context kContexts[] = {
      Context::kOrder1,  Context::kOrder2,       Context::kOrder3,        Context::kOrder4,
      Context::kOrder6,  Context::kSparse2,      Context::kSparse3,       Context::kSparse23,
      Context::kSparse4, Context::kRecordAbove1, Context::kRecordColumn1, Context::kExpected,
  };
};
struct StrongProfile {
  static constexpr Context kContexts[] = {
      Context::kOrder1,        Context::kOrder2,    Context::kOrder3,     Context::kOrder4,
      Context::kOrder5,        Context::kOrder6,    Context::kOrder8,     Context::kWord,
      Context::kWordPair,      Context::kWordSkip,  Context::kWordOrder1, Context::kKey,
      Context::kAfterByte,     Context::kAfterPair, Context::kAbove,      Context::kField,
      Context::kSparse2,       Context::kSparse3,   Context::kSparse23,   Context::kRecordAbove1,
      Context::kRecordColumn1, Context::kExpected,
  };
};

template <Context kind>
uint32_t context_hash(const Lane& lane, const SharedPast& past, const Match& match) {
  constexpr auto kSeed = static_cast<uint32_t>(kind) * 0x3D4D51CBu + 1;
  const auto bytes = [&](int n) {
    const uint64_t b = lane.recent(n);
    return hash_of(static_cast<uint32_t>(b), static_cast<uint32_t>(b >> 32), kSeed);
  };
  const uint32_t c1 = lane.byte_back(1), c2 = lane.byte_back(2), c3 = lane.byte_back(3);
  const uint32_t c4 = lane.byte_back(4);
  switch (kind) {
    case Context::kOrder1:
      return bytes(1);
    case Context::kOrder2:
      return bytes(2);
    case Context::kOrder3:
      return bytes(3);
    case Context::kOrder4:
      return bytes(4);
    case Context::kOrder5:
      return bytes(5);
    case Context::kOrder6:
      return bytes(6);
    case Context::kOrder8:
      return bytes(8);
    case Context::kWord:
      return hash_of(lane.word(), c1, kSeed);
    case Context::kWordPair:
      return hash_of(lane.word() + c1, lane.word_back(1), kSeed);
    case Context::kWordSkip:
      return hash_of(lane.word() + c1, lane.word_back(2), kSeed);
    case Context::kWordOrder1:
      return hash_of(lane.word_back(1), c1 | c2 << 8, kSeed);
    case Context::kKey:
      return hash_of(lane.key(), lane.word() + c1, kSeed);
    case Context::kShape:
      return hash_of(lane.number_shape(), c1, kSeed);
    case Context::kColumn:
      return hash_of(lane.column(), lane.above(past), kSeed);
    case Context::kAbove:
      return hash_of(lane.above(past), c1, kSeed);
    case Context::kField:
      return hash_of(lane.field() << 16 | lane.above(past), c1, kSeed);
    case Context::kLineStart:
      return hash_of(lane.line_start(), c1, kSeed);
    case Context::kAfterByte:
      return hash_of(past.after_byte[c1] & 0xffff, c1, kSeed);
    case Context::kAfterPair:
      return hash_of(past.after_pair[lane.recent() & 0xffff], c1, kSeed);
    case Context::kExpected:
      return hash_of(static_cast<uint32_t>(match.expected + 1),
                     match.expected < 0 ? c1 : MatchModel::trust(match) / 8, kSeed);
    case Context::kSparse2:
      return hash_of(c2, 0, kSeed);
    case Context::kSparse3:
      return hash_of(c3, 0, kSeed);
    case Context::kSparse4:
      return hash_of(c4, 0, kSeed);
    case Context::kSparse23:
      return hash_of(c2 | c3 << 8, 0, kSeed);
    case Context::kSparse34:
      return hash_of(c3 | c4 << 8, 0, kSeed);
    case Context::kSparse13:
      return hash_of(c1 | c3 << 8, 0, kSeed);
    case Context::kSparse12High:
      return hash_of((c1 & 0xf0) | (c2 & 0xf0) << 8, c3 & 0xf0, kSeed);
    case Context::kRecordAbove:
      return hash_of(lane.record_back(past, 1), past.period, kSeed);
    case Context::kRecordAbove1:
      return hash_of(lane.record_back(past, 1), c1, kSeed);
    case Context::kRecordColumn:
      return hash_of(past.period == 0 ? 0 : lane.pos() % past.period, past.period, kSeed);
    case Context::kRecordTwo:
      return hash_of(lane.record_back(past, 1), lane.record_back(past, 2), kSeed);
    case Context::kRecordColumn1:
      return hash_of(past.period == 0 ? c2 : lane.pos() % past.period + 256,
                     lane.record_back(past, 1), kSeed);
    case Context::kPosition4:
      return hash_of(lane.pos() % 4, c1, kSeed);
  }
}

// Buckets of 16 bytes: a check byte, then the histories of the 15 nodes of a nibble.  A lookup
// stays within one cache line of four buckets.
class HistoryTable {
 public:
  explicit HistoryTable(int log2_memory)
      : shift_(32 - (log2_memory - 6)), size_(size_t{1} << log2_memory) {
    const size_t alignment = std::min(size_, kHugePage);
    base_.reset(static_cast<uint8_t*>(std::aligned_alloc(alignment, size_)));
    if (base_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    if (size_ >= kHugePage) madvise(base_.get(), size_, MADV_HUGEPAGE);  // a fifth faster
#endif
    std::memset(base_.get(), 0, size_);
  }

  void prefetch(uint32_t hash) const { __builtin_prefetch(line(hash)); }

  // The bucket of this context; of a bucket taken over, all nodes are as never seen.
  uint8_t* find(uint32_t hash) const {
    uint8_t* const here = line(hash);
    const auto check = static_cast<uint8_t>(hash);
    for (size_t i = 0; i < 4; ++i) {
      if (here[16 * i] == check) return here + 16 * i;
    }
    size_t worst = 0;  // the root's history has the lowest number where least was seen
    for (size_t i = 1; i < 4; ++i) {
      if (here[16 * i + 1] < here[16 * worst + 1]) worst = i;
    }
    uint8_t* const bucket = here + 16 * worst;
    for (size_t i = 0; i < 16; ++i) bucket[i] = 0;
    bucket[0] = check;
    return bucket;
  }

  std::span<const uint8_t> bytes() const { return {base_.get(), size_}; }

 private:
  static constexpr size_t kHugePage = size_t{1} << 21;
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };

  uint8_t* line(uint32_t hash) const { return base_.get() + size_t{hash >> shift_} * 64; }

  int shift_;
  size_t size_;
  std::unique_ptr<uint8_t, Free> base_;
};

// Weight sets, one of which is selected for each bit.
class WeightSets {
 public:
  WeightSets(size_t sets, size_t inputs, int32_t initial)
      : inputs_(inputs), weights_(sets * inputs + 8, initial) {
    base_ = weights_.data();
    while (reinterpret_cast<uintptr_t>(base_) % 32 != 0) ++base_;
  }
  // The same initial weight in every set for one input.
  void fill_input(size_t input, int32_t weight) {
    for (size_t i = input; i < weights_.size() - 8; i += inputs_) base_[i] = weight;
  }
  int32_t* set(size_t i) { return base_ + i * inputs_; }
  std::span<const int32_t> all() const { return {base_, weights_.size() - 8}; }

 private:
  size_t inputs_;
  std::vector<int32_t> weights_;
  int32_t* base_;
};

struct EncodeBits {
  RangeEncoder& encoder;
  uint32_t byte;
  int code(int i, uint32_t p1) {
    const bool bit = byte >> (7 - i) & 1;
    encoder.encode_bit(bit, p1, 16);
    return bit;
  }
};

struct DecodeBits {
  RangeDecoder& decoder;
  int code(int, uint32_t p1) { return decoder.decode_bit(p1, 16); }
};

uint64_t fold(uint64_t hash, const void* data, size_t size) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  for (size_t i = 0; i < size; ++i) hash = (hash ^ bytes[i]) * 0x100000001B3u;
  return hash;
}

}  // namespace

class MixerEngine {
 public:
  virtual ~MixerEngine() = default;
  virtual void encode(int lane, uint8_t byte, const uint32_t* weights, RangeEncoder& encoder) = 0;
  virtual uint8_t decode(int lane, const uint32_t* weights, RangeDecoder& decoder) = 0;
  virtual uint64_t state_hash() const = 0;
};

namespace {

template <class Profile, bool kNetwork>
class Engine final : public MixerEngine {
  static constexpr size_t kContexts = std::size(Profile::kContexts);
  static constexpr size_t kSlots = kContexts + 1;           // and order 0
  static constexpr size_t kMatchInput = 2 * kSlots;         // 2 inputs
  static constexpr size_t kNetworkInput = kMatchInput + 2;  // 4 inputs
  static constexpr size_t kBiasInput = kNetworkInput + (kNetwork ? 4 : 0);
  static constexpr size_t kInputs = (kBiasInput + 1 + 7) / 8 * 8;
  static constexpr size_t kSets = kNetwork ? 5 : 4;
  static constexpr bool kUsesExpected = Profile::kContexts[kContexts - 1] == Context::kExpected;

 public:
  Engine(const MixerParams& params, size_t raw_size, int lanes)
      : stride_(static_cast<uint32_t>(lane_stride(raw_size, lanes))),
        avx2_(active_kernel() != Kernel::kPortable && has_avx2()),
        table_(params.log2_memory),
        match_(MTUNE(min_match, 6), match_table_bits(raw_size)),
        first_{WeightSets(64 * 8, kInputs, initial_weight()),
               WeightSets(256, kInputs, initial_weight()),
               WeightSets(256, kInputs, initial_weight()),
               WeightSets(2048, kInputs, initial_weight()),
               WeightSets(kNetwork ? 32 * 8 : 1, kInputs, initial_weight())},
        second_(256, kSets, 65536 / kSets) {
    past_.bytes.resize(raw_size);
    for (int i = 0; i < lanes; ++i) {
      const auto begin =
          static_cast<uint32_t>(std::min(size_t{stride_} * static_cast<size_t>(i), raw_size));
      const auto end = static_cast<uint32_t>(std::min(size_t{begin} + stride_, raw_size));
      lanes_.emplace_back(begin, end);
    }
    matches_.resize(lanes_.size());
    hashes_.resize(lanes_.size());
    for (size_t slot = 0; slot < kSlots; ++slot) {
      for (int state = 0; state < 256; ++state) {
        const int known = state < history_.states() ? state : 0;
        maps_[slot][static_cast<size_t>(state)] =
            adaptive_cell(history_.initial_p16(known), static_cast<uint32_t>(MTUNE(sm_start, 10)));
      }
    }
    for (size_t i = 0; i < match_maps_.size(); ++i) {
      const uint32_t length = static_cast<uint32_t>(i) / 4;
      match_maps_[i] = adaptive_cell(65536 * (length + 1) / (length + 2) * 15 / 16, 4);
    }
    if (kNetwork) {
      for (WeightSets& sets : first_) sets.fill_input(kNetworkInput, MTUNE(wn, 40000));
    }
    for (size_t lane = 0; lane < lanes_.size(); ++lane) prepare(lane);
  }

  void encode(int lane, uint8_t byte, const uint32_t* weights, RangeEncoder& encoder) override {
    code_either(static_cast<size_t>(lane), weights, EncodeBits{encoder, byte});
  }

  uint8_t decode(int lane, const uint32_t* weights, RangeDecoder& decoder) override {
    return code_either(static_cast<size_t>(lane), weights, DecodeBits{decoder});
  }

  uint64_t state_hash() const override {
    uint64_t h = 14695981039346656037u;
    h = fold(h, table_.bytes().data(), table_.bytes().size());
    h = fold(h, maps_.data(), sizeof(maps_));
    for (const WeightSets& sets : first_) h = fold(h, sets.all().data(), sets.all().size_bytes());
    return fold(h, second_.all().data(), second_.all().size_bytes());
  }

 private:
  static bool has_avx2() {
#if defined(__x86_64__)
    return true;
#else
    return false;
#endif
  }
  static int match_table_bits(size_t raw_size) {
    return std::clamp(static_cast<int>(std::bit_width(raw_size)), 10, 22);
  }
  static int32_t initial_weight() { return kNetwork ? MTUNE(w0n, 4000) : MTUNE(w0, 14000); }

  template <class Coder>
  uint8_t code_either(size_t lane, const uint32_t* weights, Coder coder) {
#if defined(__x86_64__)
    if (avx2_) return code_avx2(lane, weights, coder);
#endif
    return code_portable(lane, weights, coder);
  }
  template <class Coder>
  __attribute__((flatten)) uint8_t code_portable(size_t lane, const uint32_t* w, Coder coder) {
    return code<PortableKernel>(lane, w, coder);
  }
#if defined(__x86_64__)
  template <class Coder>
  __attribute__((target("avx2,bmi,bmi2"),
                 flatten)) uint8_t code_avx2(size_t lane, const uint32_t* w, Coder coder) {
    return code<Avx2Kernel>(lane, w, coder);
  }
#endif

  // One byte of a lane, most significant bit first.
  template <class Kernel, class Coder>
  uint8_t code(size_t lane, const uint32_t* weights, Coder& coder) {
    begin_byte(lane, weights);
    for (int i = 0; i < 8; ++i) {
      if (i == 4) begin_nibble(lane, partial_);
      const uint32_t p1 = predict<Kernel>(i);
      const int bit = coder.code(i, p1);
      const uint32_t partial = partial_ * 2 + static_cast<uint32_t>(bit);
      // The next nibble's cache lines travel while this bit is learned.
      if (i == 3) prefetch_nibble(lane, partial);
      if (i == 7) {
        lanes_[lane].append(static_cast<uint8_t>(partial), past_);
        match_.prefetch(lanes_[lane]);
        prepare(lane);
      }
      learn<Kernel>(i, bit);
      partial_ = partial;
      node_ = i == 3 ? 1 : node_ * 2 + static_cast<uint32_t>(bit);
    }
    match_.advance(matches_[lane], lanes_[lane], lanes_, stride_, past_);
    return static_cast<uint8_t>(partial_);
  }

  // The contexts of a lane's next byte, as soon as they are known, so that their cache lines are on
  // the way while other lanes are coded.
  void prepare(size_t lane) { fill_hashes(lane, std::make_index_sequence<kContexts>()); }
  template <size_t... i>
  void fill_hashes(size_t lane, std::index_sequence<i...>) {
    auto& hashes = hashes_[lane];
    ((hashes[i] = context_hash<Profile::kContexts[i]>(lanes_[lane], past_, matches_[lane])), ...);
    (table_.prefetch(nibble_hash(hashes[i], 0)), ...);
  }

  static uint32_t nibble_hash(uint32_t hash, uint32_t partial) {
    const uint32_t h = (hash + partial * kHashB) * kHashA;
    return h ^ h >> 15;
  }

  void begin_byte(size_t lane, const uint32_t* weights) {
    const Lane& state = lanes_[lane];
    const Match& match = matches_[lane];
    partial_ = 1;
    node_ = 1;
    expected_ = match.expected < 0 ? 0 : static_cast<uint32_t>(match.expected) | 256;
    trust_ = MatchModel::trust(match);
    c1_ = state.byte_back(1);
    c2_ = state.byte_back(2);
    variant_ = (variant_ + 5) % BitHistory::kVariants;
    if constexpr (kNetwork) begin_network(weights);
    // The match of this lane's last byte was found after the other contexts were computed.
    if constexpr (kUsesExpected) {
      hashes_[lane][kContexts - 1] = context_hash<Context::kExpected>(state, past_, match);
    }
    order2_ = hash_of(c1_ | c2_ << 8, 0) >> 16;
    begin_nibble(lane, 0);
  }

  void prefetch_nibble(size_t lane, uint32_t partial) const {
    for (const uint32_t hash : hashes_[lane]) table_.prefetch(nibble_hash(hash, partial));
  }

  void begin_nibble(size_t lane, uint32_t partial) {
    const auto& hashes = hashes_[lane];
    for (size_t i = 0; i < kContexts; ++i)
      buckets_[i] = table_.find(nibble_hash(hashes[i], partial));
    buckets_[kContexts] = order0_.data() + 16 * (partial == 0 ? 0 : partial - 15);
  }

  template <class Kernel>
  uint32_t predict(int i) {
    for (size_t slot = 0; slot < kSlots; ++slot) {
      const uint8_t state = buckets_[slot][node_];
      states_[slot] = state;
      const uint32_t p12 = p12_of(maps_[slot][state]);
      const bool known = state != 0;
      inputs_[2 * slot] = known ? kLogistic.stretch12(p12) : 0;
      inputs_[2 * slot + 1] = known ? (static_cast<int>(p12) - 2048) * MTUNE(lin, 4) / 8 : 0;
    }
    const size_t context1 = partial_ | c1_ << 8;
    const size_t context2 = (order2_ ^ partial_ * 0x9E35) & 0xffff;
    apm1_.prefetch(context1);
    apm2_.prefetch(context2);
    predict_match(i);
    if constexpr (kNetwork) predict_network();
    inputs_[kBiasInput] = 256;

    const uint32_t matched = expected_ != 0 ? trust_ : 0;
    selected_[0] = first_[0].set(matched * 8 + static_cast<uint32_t>(i));
    selected_[1] = first_[1].set(partial_);
    selected_[2] = first_[2].set(c1_);
    selected_[3] = first_[3].set(c2_ * 8 + static_cast<uint32_t>(i));
    if constexpr (kNetwork)
      selected_[4] = first_[4].set(confidence_ * 8 + static_cast<uint32_t>(i));
    final_ = second_.set(partial_);
    int32_t sum = 0;
    for (size_t s = 0; s < kSets; ++s) {
      const int dot = Kernel::dot(inputs_.data(), selected_[s], kInputs) >> 8;
      outputs_[s] = clamp_stretch(dot);
      sum += (outputs_[s] * final_[s]) >> 8;
    }
    mixed_ = clamp_stretch(sum >> 8);
    const int p_mixed = kLogistic.squash(mixed_);
    p_mixed_ = p_mixed;
    const int pa = apm1_.refine(mixed_, context1);
    const int pb = apm2_.refine(mixed_, context2);
    const int p = (2 * p_mixed + pa + pb + 2) >> 2;
    return static_cast<uint32_t>(std::clamp(p, 1, 65535));
  }

  void predict_match(int i) {
    inputs_[kMatchInput] = inputs_[kMatchInput + 1] = 0;
    if (expected_ != 0 && (expected_ >> (8 - i)) != partial_) expected_ = 0;
    if (expected_ == 0) return;
    expected_bit_ = static_cast<int>(expected_ >> (7 - i) & 1);
    const uint32_t p12 = p12_of(match_maps_[trust_]);
    const int st = kLogistic.stretch12(p12);
    const int linear = (static_cast<int>(p12) - 2048) / 2;
    inputs_[kMatchInput] = expected_bit_ ? st : -st;
    inputs_[kMatchInput + 1] = expected_bit_ ? linear : -linear;
  }

  // The row's sums over what each bit decides between: 8 halvings, 255 additions.
  void begin_network(const uint32_t* weights) {
    network_ = weights;
    network_sum_ = 0;
    for (int i = 0; i < 256; ++i) network_sum_ += weights[i];
  }

  void predict_network() {
    network_half_ = 0;
    const uint32_t* const row = network_ + network_half_size();
    for (uint32_t i = 0; i < network_half_size(); ++i) network_half_ += row[i];
    uint32_t p16 = 32768;
    if (network_sum_ != 0) {
      p16 = static_cast<uint32_t>((network_half_ << 16) / network_sum_);
    }
    p16 = std::clamp(p16, 1u, 65535u);
    const int st = kLogistic.stretch16(p16);
    auto* const inputs = inputs_.data() + kNetworkInput;
    inputs[0] = st;
    inputs[1] = (static_cast<int>(p16) - 32768) / 32;
    inputs[2] = kLogistic.stretch16(static_cast<uint32_t>(network_apm1_.refine(st, partial_)));
    inputs[3] =
        kLogistic.stretch16(static_cast<uint32_t>(network_apm2_.refine(st, partial_ | c1_ << 8)));
    confidence_ = static_cast<uint32_t>(std::abs(st)) / 88;  // 0 .. 31
  }
  uint32_t network_half_size() const { return 128u >> (31 - std::countl_zero(partial_)); }

  void learn_network(int bit) {
    if (bit) network_ += network_half_size();
    network_sum_ = bit ? network_half_ : network_sum_ - network_half_;
    network_apm1_.update(bit, 6);
    network_apm2_.update(bit, 6);
  }

  template <class Kernel>
  void learn(int, int bit) {
    const auto& next = history_.next()[variant_];
    for (size_t slot = 0; slot < kSlots; ++slot) {
      const uint8_t state = states_[slot];
      uint32_t& cell = maps_[slot][state];
      cell = adapt(cell, bit, static_cast<uint32_t>(MTUNE(sm_limit, 255)));
      buckets_[slot][node_] = next[static_cast<size_t>(2 * state + bit)];
    }
    if (expected_ != 0) {
      uint32_t& cell = match_maps_[trust_];
      cell = adapt(cell, bit == expected_bit_, static_cast<uint32_t>(MTUNE(match_limit, 1023)));
    }
    const int target = bit << 16;
    const int final_step = (target - p_mixed_) * MTUNE(rate2, 2) >> 4;
    for (size_t s = 0; s < kSets; ++s) {
      const int step = (target - kLogistic.squash(outputs_[s])) * MTUNE(rate1, 10) >> 4;
      Kernel::train(inputs_.data(), selected_[s], kInputs, step);
      final_[s] = std::clamp(final_[s] + ((outputs_[s] * final_step + (1 << 15)) >> 16),
                             -kWeightMax, kWeightMax);
    }
    if constexpr (kNetwork) learn_network(bit);
    apm1_.update(bit, MTUNE(apm_rate, 6));
    apm2_.update(bit, MTUNE(apm_rate, 6));
  }

  const BitHistory& history_ = bit_history();
  uint32_t stride_;
  bool avx2_;
  SharedPast past_;
  std::vector<Lane> lanes_;
  std::vector<Match> matches_;
  std::vector<std::array<uint32_t, kContexts>> hashes_;

  HistoryTable table_;
  std::array<uint8_t, 17 * 16> order0_{};
  std::array<std::array<uint32_t, 256>, kSlots> maps_{};
  MatchModel match_;
  std::array<uint32_t, MatchModel::kContexts> match_maps_{};
  std::array<WeightSets, 5> first_;
  WeightSets second_;
  Apm apm1_{65536};
  Apm apm2_{65536};
  Apm network_apm1_{kNetwork ? 256 : 1};
  Apm network_apm2_{kNetwork ? 65536 : 1};

  // Of the byte and the bit being coded.
  uint32_t partial_ = 1;  // the bits so far behind a leading one
  uint32_t node_ = 1;     // the same within the nibble
  uint32_t expected_ = 0, trust_ = 0, c1_ = 0, c2_ = 0, order2_ = 0;
  size_t variant_ = 0;
  int expected_bit_ = 0;
  const uint32_t* network_ = nullptr;  // the weights that the next bit decides between
  uint64_t network_sum_ = 0, network_half_ = 0;
  uint32_t confidence_ = 0;
  std::array<uint8_t*, kSlots> buckets_{};
  std::array<uint8_t, kSlots> states_{};
  alignas(32) std::array<int32_t, kInputs> inputs_{};
  std::array<int32_t*, kSets> selected_{};
  std::array<int, kSets> outputs_{};
  int32_t* final_ = nullptr;
  int mixed_ = 0, p_mixed_ = 0;
};

template <bool kNetwork>
std::unique_ptr<MixerEngine> make_engine(const MixerParams& params, size_t raw_size, int lanes) {
  switch (params.profile) {
    case MixerProfile::kText:
      return std::make_unique<Engine<TextProfile, kNetwork>>(params, raw_size, lanes);
    case MixerProfile::kBinary:
      return std::make_unique<Engine<BinaryProfile, kNetwork>>(params, raw_size, lanes);
    case MixerProfile::kStrong:
      return std::make_unique<Engine<StrongProfile, kNetwork>>(params, raw_size, lanes);
  }
  throw std::invalid_argument("unknown mixer profile");
}

}  // namespace

Mixer::Mixer(const MixerParams& params, size_t raw_size, int lanes) {
  if (params.log2_memory < kMixerMinLog2Memory || params.log2_memory > kMixerMaxLog2Memory) {
    throw std::invalid_argument("mixer memory is 2^" + std::to_string(params.log2_memory) +
                                " bytes; expected 2^16 to 2^30");
  }
  if (lanes < 1) throw std::invalid_argument("a frame needs at least one lane");
  if (raw_size >> 30 != 0) throw std::invalid_argument("a mixed frame must be below 1 GiB");
  engine_ = params.with_network ? make_engine<true>(params, raw_size, lanes)
                                : make_engine<false>(params, raw_size, lanes);
}
Mixer::~Mixer() = default;
Mixer::Mixer(Mixer&&) noexcept = default;
Mixer& Mixer::operator=(Mixer&&) noexcept = default;

void Mixer::encode_byte(int lane, uint8_t byte, const uint32_t* weights, RangeEncoder& encoder) {
  engine_->encode(lane, byte, weights, encoder);
}
uint8_t Mixer::decode_byte(int lane, const uint32_t* weights, RangeDecoder& decoder) {
  return engine_->decode(lane, weights, decoder);
}
uint64_t Mixer::state_hash() const { return engine_->state_hash(); }

size_t lane_stride(size_t raw_size, int lanes) {
  const auto n = static_cast<size_t>(lanes);
  return std::max((raw_size + n - 1) / n, size_t{1});
}

std::vector<std::vector<uint8_t>> encode_frame_mixer(std::span<const uint8_t> raw, int lanes,
                                                     const MixerParams& params,
                                                     const uint32_t* weights) {
  Mixer mixer(params, raw.size(), lanes);
  const size_t stride = lane_stride(raw.size(), lanes);
  std::vector<RangeEncoder> encoders(static_cast<size_t>(lanes));
  for (size_t t = 0; t < stride; ++t) {
    for (int lane = 0; lane < lanes; ++lane) {
      const size_t at = static_cast<size_t>(lane) * stride + t;
      if (at >= raw.size()) break;
      mixer.encode_byte(lane, raw[at], weights == nullptr ? nullptr : weights + 256 * at,
                        encoders[static_cast<size_t>(lane)]);
    }
  }
  std::vector<std::vector<uint8_t>> payloads;
  for (RangeEncoder& encoder : encoders) payloads.push_back(encoder.finish());
  return payloads;
}

bool decode_frame_mixer(std::span<const std::span<const uint8_t>> payloads,
                        const MixerParams& params, std::span<uint8_t> raw,
                        const uint32_t* weights) {
  const int lanes = static_cast<int>(payloads.size());
  Mixer mixer(params, raw.size(), lanes);
  const size_t stride = lane_stride(raw.size(), lanes);
  std::vector<RangeDecoder> decoders;
  for (const std::span<const uint8_t> payload : payloads) decoders.emplace_back(payload);
  for (size_t t = 0; t < stride; ++t) {
    for (int lane = 0; lane < lanes; ++lane) {
      const size_t at = static_cast<size_t>(lane) * stride + t;
      if (at >= raw.size()) break;
      raw[at] = mixer.decode_byte(lane, weights == nullptr ? nullptr : weights + 256 * at,
                                  decoders[static_cast<size_t>(lane)]);
    }
  }
  bool exact = true;
  for (const RangeDecoder& decoder : decoders) exact &= decoder.end() == StreamEnd::kExact;
  return exact;
}

}  // namespace lmzip

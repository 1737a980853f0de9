// mixer_engine.h: the mixer itself, for one profile, with or without a network; see mixer.h.
//
// One predict-and-learn loop serves encoder and decoder, so they cannot differ; only `Coder` knows
// the direction.  Between bits: partial_ holds the bits of the byte so far behind a leading one,
// node_ those of its nibble, buckets_ the histories of the nibble in every context.
// Specified in docs/mixer.md.
#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <utility>
#include <vector>

#include "adaptive_map.h"
#include "bit_history.h"
#include "cpu.h"
#include "history_table.h"
#include "logistic.h"
#include "match_model.h"
#include "mix_kernels.h"
#include "mixer.h"
#include "mixer_ablation.h"
#include "mixer_contexts.h"
#include "mixer_lane.h"
#include "sample_model.h"
#include "weight_sets.h"

namespace lmzip {

class MixerEngine {
 public:
  virtual ~MixerEngine() = default;
  virtual void encode(int lane, uint8_t byte, const uint32_t* weights, RangeEncoder& encoder) = 0;
  virtual uint8_t decode(int lane, const uint32_t* weights, RangeDecoder& decoder) = 0;
  virtual uint64_t state_hash() const = 0;
};

struct EncodeBits {
  RangeEncoder& encoder;
  uint32_t byte;
  int code(int i, uint32_t p1) {
    const bool bit = byte >> (7 - i) & 1;
    encoder.encode_bit(bit, p1, kProbBits);
    return bit;
  }
};

struct DecodeBits {
  RangeDecoder& decoder;
  int code(int, uint32_t p1) { return decoder.decode_bit(p1, kProbBits); }
};

// FNV-1a.
inline uint64_t fold(uint64_t hash, const void* data, size_t size) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  for (size_t i = 0; i < size; ++i) hash = (hash ^ bytes[i]) * 0x100000001B3u;
  return hash;
}

// Sixteen kinds of bytes, as far as they matter for what comes next in text.
inline constexpr std::array<uint8_t, 256> kByteClass = [] {
  std::array<uint8_t, 256> table{};
  for (size_t c = 0; c < 256; ++c) {
    table[c] = c < 32 ? 7 : c >= 192 ? 6 : c >= 128 ? 5 : 15;
    if (c >= 'a' && c <= 'z') table[c] = 0;
    if (c >= 'A' && c <= 'Z') table[c] = 1;
    if (c >= '0' && c <= '9') table[c] = 2;
  }
  const auto assign = [&](const char* bytes, uint8_t kind) {
    for (; *bytes != '\0'; ++bytes) table[static_cast<uint8_t>(*bytes)] = kind;
  };
  assign(" ", 3);
  assign("\n", 4);
  assign(",.", 8);
  assign("\"'", 9);
  assign("<({[", 10);
  assign(">)}]", 11);
  assign("-_", 12);
  assign("/:", 13);
  assign("=+", 14);
  return table;
}();

template <class Profile, bool kNetwork>
class Engine final : public MixerEngine {
  static constexpr size_t kContexts = std::size(Profile::kContexts);
  static_assert(Profile::kContexts[kContexts - 1] == Context::kExpected);
  static constexpr size_t kHashes =
      kContexts + (Profile::kSamples ? SamplePredictor::kContexts : 0);
  static constexpr size_t kSlots = kHashes + 1;  // the last is order 0
  // Inputs of the mixer: two for each slot, two of each match, five of the network, one constant.
  static constexpr size_t kMatchInput = 2 * kSlots;
  static constexpr size_t kNetworkInput = kMatchInput + 4;
  static constexpr size_t kBiasInput = kNetworkInput + (kNetwork ? 5 : 0);
  static constexpr size_t kInputs = (kBiasInput + 1 + 7) / 8 * 8;
  static constexpr size_t kSets = kNetwork ? 5 : 4;

  // Learning rates, in 1/16: of the first layer it starts at the sum and falls to kRate.
  static constexpr int kRate = kNetwork ? 18 : 14;
  static constexpr int kExtraRate = 24;
  static constexpr uint32_t kExtraRateBytes = 16384;  // where half of the extra is gone
  static constexpr int kFinalRate = 6;
  static constexpr uint32_t kMapLimit = 255;
  static constexpr uint32_t kMatchMapLimit = 1023;
  static constexpr uint32_t kApmLimit = 127;
  static constexpr int kMinMatch = 5, kMinLongMatch = 20;
  static constexpr size_t kApm2Contexts = 1 << 14;

 public:
  Engine(const MixerParams& params, size_t raw_size, int lanes)
      : stride_(static_cast<uint32_t>(lane_stride(raw_size, lanes))),
        table_(params.log2_memory),
        match_(kMinMatch, raw_size, static_cast<size_t>(lanes)),
        long_match_(kMinLongMatch, raw_size, static_cast<size_t>(lanes)),
        first_{WeightSets(MatchModel::kContexts * 8, kInputs, kInitialWeight),
               WeightSets(256, kInputs, kInitialWeight), WeightSets(256, kInputs, kInitialWeight),
               WeightSets(256 * 8, kInputs, kInitialWeight),
               WeightSets(kNetwork ? 16 * kMatchOpinions * 2 : 1, kInputs, kInitialWeight)},
        second_(256, kSets, 65536 / kSets) {
    past_.bytes.resize(raw_size);
    for (size_t i = 0; i < static_cast<size_t>(lanes); ++i) {
      const size_t begin = std::min(stride_ * i, raw_size);
      lanes_.emplace_back(static_cast<uint32_t>(begin),
                          static_cast<uint32_t>(std::min(begin + stride_, raw_size)),
                          Profile::kCode);
    }
    hashes_.resize(lanes_.size());
    if (Profile::kSamples) samples_.resize(lanes_.size());
    start_maps();
    if (kNetwork) {
      for (WeightSets& sets : first_) sets.fill_input(kNetworkInput, kInitialNetworkWeight);
    }
    for (size_t lane = 0; lane < lanes_.size(); ++lane) prepare(lane);
    mark_ablated();
  }

  void encode(int lane, uint8_t byte, const uint32_t* weights, RangeEncoder& encoder) override {
    code_byte(static_cast<size_t>(lane), weights, EncodeBits{encoder, byte});
  }

  uint8_t decode(int lane, const uint32_t* weights, RangeDecoder& decoder) override {
    return code_byte(static_cast<size_t>(lane), weights, DecodeBits{decoder});
  }

  uint64_t state_hash() const override {
    uint64_t h = fold(14695981039346656037u, table_.bytes().data(), table_.bytes().size());
    h = fold(h, maps_.data(), sizeof(maps_));
    for (const WeightSets& sets : first_) h = fold(h, sets.all().data(), sets.all().size_bytes());
    return fold(h, second_.all().data(), second_.all().size_bytes());
  }

 private:
  static constexpr int32_t kInitialWeight = kNetwork ? 3000 : 6000;
  static constexpr int32_t kInitialNetworkWeight = 40000;

  // One of the two matches: of every lane, and of the byte and the bit being coded.
  struct Matcher {
    MatchModel model;
    std::vector<Match> lanes;
    std::array<uint32_t, MatchModel::kContexts> maps{};
    uint32_t expected = 0;  // the byte behind a leading one, 0 once it is contradicted
    uint32_t trust = 0;
    int bit = 0;

    Matcher(int min_length, size_t raw_size, size_t lanes_)
        : model(min_length, std::clamp(static_cast<int>(std::bit_width(raw_size)), 10, 22)),
          lanes(lanes_) {
      for (uint32_t i = 0; i < MatchModel::kContexts; ++i) {
        const uint32_t length = i / 4;
        maps[i] = adaptive_cell(61440 * (length + 1) / (length + 2), 4);
      }
    }

    void begin_byte(size_t lane) {
      const Match& match = lanes[lane];
      expected = match.expected < 0 ? 0 : static_cast<uint32_t>(match.expected) | 256;
      trust = MatchModel::trust(match);
    }
    void begin_bit(int i, uint32_t partial) {
      if (expected >> (8 - i) != partial) expected = 0;
      bit = static_cast<int>(expected >> (7 - i) & 1);
    }
    void learn(int actual) {
      if (expected != 0) maps[trust] = adapt(maps[trust], actual == bit, kMatchMapLimit);
    }
  };

  void start_maps() {
    for (auto& map : maps_) {
      for (int state = 0; state < history_.states(); ++state) {
        map[static_cast<size_t>(state)] = adaptive_cell(history_.initial_p16(state), 10);
      }
    }
  }

  void mark_ablated() {
    for (size_t i = 0; i < kContexts; ++i) {
      off_[i] = ablated(kContextNames[static_cast<size_t>(Profile::kContexts[i])]);
    }
    for (size_t i = kContexts; i < kHashes; ++i) {
      constexpr const char* kSampleNames[] = {"sample0", "sample1", "sample2", "sample3",
                                              "sample4", "sample5", "sample6", "sample7",
                                              "sample8", "sample9"};
      off_[i] = ablated(kSampleNames[i - kContexts]);
    }
    off_[kHashes] = ablated("order0");
    constexpr const char* kSetNames[] = {"set-match", "set-partial", "set-byte", "set-classes",
                                         "set-confidence"};
    for (size_t s = 0; s < kSets; ++s) set_off_[s] = ablated(kSetNames[s]);
    match_off_ = ablated("match");
    long_match_off_ = ablated("longmatch");
    apm_off_ = ablated("apm");
    network_apm_off_ = ablated("network-apm");
  }

  template <class Coder>
  uint8_t code_byte(size_t lane, const uint32_t* weights, Coder coder) {
#if defined(__x86_64__)
    if (avx2_) return code_avx2(lane, weights, coder);
#endif
    return code_portable(lane, weights, coder);
  }
  template <class Coder>
  __attribute__((flatten)) uint8_t code_portable(size_t lane, const uint32_t* weights,
                                                 Coder coder) {
    return code<PortableKernel>(lane, weights, coder);
  }
#if defined(__x86_64__)
  template <class Coder>
  __attribute__((target("avx2,bmi,bmi2"),
                 flatten)) uint8_t code_avx2(size_t lane, const uint32_t* weights, Coder coder) {
    return code<Avx2Kernel>(lane, weights, coder);
  }
#endif

  // One byte of a lane, most significant bit first.
  template <class Mix, class Coder>
  uint8_t code(size_t lane, const uint32_t* weights, Coder& coder) {
    begin_byte(lane, weights);
    for (int i = 0; i < 8; ++i) {
      if (i == 4) find_buckets(lane, partial_);
      const int bit = coder.code(i, predict<Mix>(i));
      const uint32_t partial = partial_ * 2 + static_cast<uint32_t>(bit);
      // The cache lines that come next travel while this bit is learned.
      if (i == 3) prefetch_buckets(lane, partial);
      if (i == 7) {
        lanes_[lane].append(static_cast<uint8_t>(partial), past_);
        if constexpr (Profile::kSamples) layout_.count_byte(lanes_[lane], past_);
        match_.model.prefetch(lanes_[lane]);
        long_match_.model.prefetch(lanes_[lane]);
        prepare(lane);
      }
      learn<Mix>(bit);
      partial_ = partial;
      node_ = i == 3 ? 1 : node_ * 2 + static_cast<uint32_t>(bit);
    }
    for (Matcher* matcher : {&match_, &long_match_})
      matcher->model.advance(matcher->lanes[lane], lanes_[lane], lanes_, stride_, past_);
    count_byte();
    return static_cast<uint8_t>(partial_);
  }

  // The contexts of a lane's next byte, as soon as its last byte is known: their cache lines are on
  // the way while other lanes are coded.
  void prepare(size_t lane) { prepare(lane, std::make_index_sequence<kContexts - 1>()); }
  template <size_t... i>
  void prepare(size_t lane, std::index_sequence<i...>) {
    auto& hashes = hashes_[lane];
    ((hashes[i] = context_hash<Profile::kContexts[i]>(lanes_[lane], past_, match_.lanes[lane])),
     ...);
    if constexpr (Profile::kSamples) {
      samples_[lane].advance(lanes_[lane], past_, layout_);
      for (size_t j = 0; j < SamplePredictor::kContexts; ++j) {
        hashes[kContexts + j] = samples_[lane].context(j);
        table_.prefetch(nibble_hash(hashes[kContexts + j], 0));
      }
    }
    (table_.prefetch(nibble_hash(hashes[i], 0)), ...);
  }

  // partial: 0 for the first nibble, 16..31 for the second.
  static uint32_t nibble_hash(uint32_t hash, uint32_t partial) {
    const uint32_t h = (hash + partial * kHashB) * kHashA;
    return h ^ h >> 15;
  }

  void begin_byte(size_t lane, const uint32_t* weights) {
    const Lane& state = lanes_[lane];
    partial_ = 1;
    node_ = 1;
    match_.begin_byte(lane);
    long_match_.begin_byte(lane);
    c1_ = state.byte_back(1);
    const uint32_t c2 = state.byte_back(2);
    order3_ = hash_of(static_cast<uint32_t>(state.recent(3)), 1);
    if constexpr (Profile::kSamples) {
      likely_ = samples_[lane].guess();
      kind_ = samples_[lane].activity();
      order2_ = hash_of(likely_ | kind_ << 8, 0) >> 16;
    } else if constexpr (Profile::kCode) {
      likely_ = kind_ = state.x86().kind();
      order2_ = hash_of(c1_ | c2 << 8, 0) >> 16;
    } else {
      likely_ = c1_;
      kind_ = kByteClass[c1_] * 16u + kByteClass[c2];
      order2_ = hash_of(c1_ | c2 << 8, 0) >> 16;
    }
    variant_ = (variant_ + 5) % BitHistory::kVariants;
    hashes_[lane][kContexts - 1] =
        context_hash<Context::kExpected>(state, past_, match_.lanes[lane]);
    if constexpr (kNetwork) begin_network(weights);
    find_buckets(lane, 0);
  }

  void prefetch_buckets(size_t lane, uint32_t partial) const {
    for (const uint32_t hash : hashes_[lane]) table_.prefetch(nibble_hash(hash, partial));
  }

  void find_buckets(size_t lane, uint32_t partial) {
    for (size_t i = 0; i < kHashes; ++i) {
      buckets_[i] = table_.find(nibble_hash(hashes_[lane][i], partial));
    }
    buckets_[kHashes] = order0_.data() + 16 * (partial == 0 ? 0 : partial - 15);
  }

  // The probability of a 1, of 22 bits, never 0 or 1.
  template <class Mix>
  uint32_t predict(int i) {
    const size_t apm1_context = partial_ | likely_ << 8;
    const size_t apm2_context = (order2_ ^ partial_ * 0x9E35) & (kApm2Contexts - 1);
    apm1_.prefetch(apm1_context);
    apm2_.prefetch(apm2_context);
    predict_slots();
    predict_match(match_, kMatchInput, i, kAblation && match_off_);
    predict_match(long_match_, kMatchInput + 2, i, kAblation && long_match_off_);
    if constexpr (kNetwork) predict_network();
    inputs_[kBiasInput] = 256;
    select_weights(static_cast<uint32_t>(i));
    mixed_ = mix<Mix>();
    const auto mixed = static_cast<uint32_t>(kLogistic.squash(mixed_));
    const uint32_t a = apm1_.refine(mixed_, apm1_context);
    const uint32_t b = apm2_.refine(mixed_, apm2_context);
    uint32_t c = mixed;
    if constexpr (kNetwork) c = apm3_.refine(mixed_, opinions());
    const uint32_t p1 = kAblation && apm_off_ ? mixed : (mixed + a + b + c + 2) >> 2;
    return std::clamp(p1, 1u, uint32_t{kProbOne - 1});
  }

  // The probability itself, beside its logarithm: -1024..1023.
  static int linear(uint32_t p) {
    if (kAblation && !kLinear) return 0;
    return (static_cast<int>(p) - kProbOne / 2) >> (kProbBits - 11);
  }

  void predict_slots() {
    for (size_t slot = 0; slot < kSlots; ++slot) {
      const uint8_t state = buckets_[slot][node_];
      states_[slot] = state;
      const uint32_t p = p22_of(maps_[slot][state]);
      const bool known = state != 0 && !(kAblation && off_[slot]);
      inputs_[2 * slot] = known ? kLogistic.stretch(p) : 0;
      inputs_[2 * slot + 1] = known ? linear(p) : 0;
    }
  }

  void predict_match(Matcher& matcher, size_t input, int i, bool off) {
    inputs_[input] = inputs_[input + 1] = 0;
    matcher.begin_bit(i, partial_);
    if (off) matcher.expected = 0;
    if (matcher.expected == 0) return;
    const uint32_t p = p22_of(matcher.maps[matcher.trust]);
    inputs_[input] = matcher.bit ? kLogistic.stretch(p) : -kLogistic.stretch(p);
    inputs_[input + 1] = matcher.bit ? linear(p) : -linear(p);
  }

  void begin_network(const uint32_t* weights) {
    network_ = weights;
    network_sum_ = 0;
    for (size_t i = 0; i < 256; ++i) network_sum_ += weights[i];
  }

  // How many bytes the next bit decides about on each side.
  size_t network_half_size() const { return size_t{128} >> (31 - std::countl_zero(partial_)); }

  void predict_network() {
    const size_t half = network_half_size();
    network_upper_ = 0;
    for (size_t i = half; i < 2 * half; ++i) network_upper_ += network_[i];
    uint32_t p = kProbOne / 2;
    if (network_sum_ != 0) p = static_cast<uint32_t>((network_upper_ << kProbBits) / network_sum_);
    p = std::min(p, uint32_t{kProbOne - 1});
    network_stretched_ = kLogistic.stretch(p);
    const auto refined = [&](Apm& apm, size_t context) {
      const uint32_t refined_p = apm.refine(network_stretched_, context);
      return kAblation && network_apm_off_ ? 0 : kLogistic.stretch(refined_p);
    };
    inputs_[kNetworkInput] = network_stretched_;
    inputs_[kNetworkInput + 1] = linear(p);
    inputs_[kNetworkInput + 2] = refined(network_apm1_, partial_);
    inputs_[kNetworkInput + 3] = refined(network_apm2_, partial_ | c1_ << 8);
    inputs_[kNetworkInput + 4] = refined(network_apm3_, (order3_ + partial_ * kHashA) >> 16);
  }

  // What the match says of the network's opinion: nothing, the same or the opposite, by its length.
  static constexpr uint32_t kMatchOpinions = 9;
  uint32_t match_opinion() const {
    if (match_.expected == 0) return 0;
    const uint32_t length = match_.trust / 4;  // in steps: MatchModel::trust
    const uint32_t step = length < 8 ? 0 : length < 10 ? 1 : length < 13 ? 2 : 3;
    return 1 + 2 * step + ((network_stretched_ > 0) == (match_.bit != 0));
  }

  // The same for a refinement, in full.
  size_t opinions() const {
    const uint32_t match = match_.expected != 0
                               ? 2 * match_.trust + static_cast<uint32_t>(match_.bit)
                               : 128 + (network_stretched_ > 0);
    return confidence() * 256 + match;
  }
  // Of the network: 0..15.
  uint32_t confidence() const { return static_cast<uint32_t>(std::abs(network_stretched_)) / 192; }

  void select_weights(uint32_t i) {
    selected_[0] = first_[0].set((match_.expected != 0 ? match_.trust : 0) * 8 + i);
    selected_[1] = first_[1].set(partial_);
    selected_[2] = first_[2].set(c1_);
    selected_[3] = first_[3].set(kind_ * 8 + i);
    if constexpr (kNetwork) {
      selected_[4] = first_[4].set((confidence() * kMatchOpinions + match_opinion()) * 2 + (i > 3));
    }
    final_ = second_.set(partial_);
  }

  template <class Mix>
  int mix() {
    int sum = 0;
    for (size_t s = 0; s < kSets; ++s) {
      outputs_[s] = clamp_stretch(Mix::dot(inputs_.data(), selected_[s], kInputs) >> 8);
      if (kAblation && set_off_[s]) outputs_[s] = 0;
      sum += (outputs_[s] * final_[s]) >> 8;
    }
    return clamp_stretch(sum >> 8);
  }

  template <class Mix>
  void learn(int bit) {
    learn_slots(bit);
    match_.learn(bit);
    long_match_.learn(bit);
    if constexpr (kNetwork) learn_network(bit);
    learn_weights<Mix>(bit << kProbBits);
    apm1_.update(bit, kApmLimit);
    apm2_.update(bit, kApmLimit);
    if constexpr (kNetwork) apm3_.update(bit, kApmLimit);
  }

  void learn_slots(int bit) {
    const auto& next = history_.next()[variant_];
    for (size_t slot = 0; slot < kSlots; ++slot) {
      const uint8_t state = states_[slot];
      uint32_t& cell = maps_[slot][state];
      cell = adapt(cell, bit, kMapLimit);
      buckets_[slot][node_] = next[static_cast<size_t>(2 * state + bit)];
    }
  }

  void learn_network(int bit) {
    if (bit) network_ += network_half_size();
    network_sum_ = bit ? network_upper_ : network_sum_ - network_upper_;
    for (Apm* apm : {&network_apm1_, &network_apm2_, &network_apm3_}) apm->update(bit, kApmLimit);
  }

  // Every set learns from its own error; the final weights from that of the whole.
  template <class Mix>
  void learn_weights(int target) {
    const int final_step = (target - kLogistic.squash(mixed_)) * kFinalRate >> (kProbBits - 12);
    for (size_t s = 0; s < kSets; ++s) {
      const int step = (target - kLogistic.squash(outputs_[s])) * rate_ >> (kProbBits - 12);
      Mix::train(inputs_.data(), selected_[s], kInputs, step);
      const int moved = final_[s] + ((outputs_[s] * final_step + (1 << 15)) >> 16);
      final_[s] = std::clamp(moved, -kWeightMax, kWeightMax);
    }
  }

  void count_byte() {
    ++coded_;
    rate_ = kRate + static_cast<int>(kExtraRate * kExtraRateBytes / (kExtraRateBytes + coded_));
  }

#ifdef LMZIP_MIXER_ABLATION
  static constexpr bool kAblation = true;
  inline static const bool kLinear = !ablated("linear");
#else
  static constexpr bool kAblation = false, kLinear = true;
#endif

  const BitHistory& history_ = bit_history();
#if defined(__x86_64__)
  const bool avx2_ = active_kernel() >= Kernel::kAvx2;
#endif
  uint32_t stride_;
  SharedPast past_;
  std::vector<Lane> lanes_;
  std::vector<std::array<uint32_t, kHashes>> hashes_;
  SampleLayout layout_;
  std::vector<SamplePredictor> samples_;

  HistoryTable table_;
  std::array<uint8_t, 17 * 16> order0_{};
  std::array<std::array<uint32_t, 256>, kSlots> maps_{};
  Matcher match_, long_match_;
  std::array<WeightSets, 5> first_;
  WeightSets second_;
  Apm apm1_{65536};
  Apm apm2_{kApm2Contexts};
  Apm apm3_{kNetwork ? 16 * 256 : 1};
  Apm network_apm1_{kNetwork ? 256 : 1};
  Apm network_apm2_{kNetwork ? 65536 : 1};
  Apm network_apm3_{kNetwork ? 65536 : 1};
  uint32_t coded_ = 0;
  int rate_ = kRate + kExtraRate;
  size_t variant_ = 0;

  // Of the byte being coded.
  uint32_t partial_ = 1, node_ = 1;
  uint32_t c1_ = 0, order2_ = 0, order3_ = 0;
  uint32_t likely_ = 0, kind_ = 0;  // what selects weights and refinements: docs/mixer.md
  std::array<uint8_t*, kSlots> buckets_{};
  const uint32_t* network_ = nullptr;  // the weights that are left to decide between
  uint64_t network_sum_ = 0;

  // Of the bit being coded.
  uint64_t network_upper_ = 0;
  int network_stretched_ = 0;
  std::array<uint8_t, kSlots> states_{};
  alignas(32) std::array<int32_t, kInputs> inputs_{};
  std::array<int32_t*, kSets> selected_{};
  std::array<int, kSets> outputs_{};
  int32_t* final_ = nullptr;
  int mixed_ = 0;

  // Only for measurements: mixer_ablation.h.
  std::array<bool, kSlots> off_{};
  std::array<bool, kSets> set_off_{};
  bool match_off_ = false, long_match_off_ = false, apm_off_ = false, network_apm_off_ = false;
};

// One file for each profile, so that they compile side by side.
std::unique_ptr<MixerEngine> make_text_engine(const MixerParams& params, size_t raw_size,
                                              int lanes);
std::unique_ptr<MixerEngine> make_binary_engine(const MixerParams& params, size_t raw_size,
                                                int lanes);
std::unique_ptr<MixerEngine> make_strong_engine(const MixerParams& params, size_t raw_size,
                                                int lanes);
std::unique_ptr<MixerEngine> make_sample_engine(const MixerParams& params, size_t raw_size,
                                                int lanes);

std::unique_ptr<MixerEngine> make_code_engine(const MixerParams& params, size_t raw_size,
                                              int lanes);

template <class Profile>
std::unique_ptr<MixerEngine> make_engine(const MixerParams& params, size_t raw_size, int lanes) {
  if (params.with_network) {
    return std::make_unique<Engine<Profile, true>>(params, raw_size, lanes);
  }
  return std::make_unique<Engine<Profile, false>>(params, raw_size, lanes);
}

}  // namespace lmzip

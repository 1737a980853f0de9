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
  // Input pairs of the mixer: of each slot, of each match, the constant, two of the network.
  enum Extra : size_t { kMatchPair, kLongMatchPair, kConstantPair, kNetworkPair, kRefinedPair };
  using Inputs = MixInputs<kSlots, kNetwork ? 5 : 3>;
  static constexpr size_t kSets = kNetwork ? 5 : 4;
  using Weights = WeightSets<int16_t, Inputs::kInputs>;

  // Learning rates, in 1/16: of the first layer it starts at the sum and falls to kRate.
  static constexpr int kRate = kNetwork ? 18 : 14;
  static constexpr int kExtraRate = 24;
  static constexpr uint32_t kExtraRateBytes = 16384;  // where half of the extra is gone
  static constexpr int kFinalRate = 6;
  static constexpr int kSure = 1536;  // 6 nats: 1 in 404
  static constexpr uint32_t kMapLimit = 255;
  static constexpr uint32_t kMatchMapLimit = 1023;
  static constexpr uint32_t kApmLimit = 127;
  static constexpr int kMinMatch = 5, kMinLongMatch = 20;
  static constexpr uint32_t kNibbles = 17;
  static constexpr int kHashedBits = 16;  // of the contexts of hashed refinements

 public:
  Engine(const MixerParams& params, size_t raw_size, int lanes)
      : stride_(static_cast<uint32_t>(lane_stride(raw_size, lanes))),
        table_(params.log2_memory),
        match_(kMinMatch, raw_size, static_cast<size_t>(lanes)),
        long_match_(kMinLongMatch, raw_size, static_cast<size_t>(lanes)),
        first_{Weights(MatchModel::kContexts * 8, kInitialWeight), Weights(256, kInitialWeight),
               Weights(256, kInitialWeight), Weights(256 * 8, kInitialWeight),
               Weights(kNetwork ? 16 * kMatchOpinions * 2 : 1, kInitialWeight)},
        final_sets_(256, 0) {
    for (size_t s = 0; s < kSets; ++s) final_sets_.fill_input(s, 65536 / kSets);
    inputs_.extra[kConstantPair] = {256, 0};
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
      for (Weights& sets : first_)
        sets.fill_input(2 * (kSlots + kNetworkPair), kInitialNetworkWeight);
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
    for (const auto& map : maps_) {
      for (const MixerCell& cell : map) h = fold(h, &cell.cell, sizeof(cell.cell));
    }
    for (const Weights& sets : first_) h = fold(h, sets.all().data(), sets.all().size_bytes());
    return fold(h, final_sets_.all().data(), final_sets_.all().size_bytes());
  }

 private:
  // Of 8192.
  static constexpr int16_t kInitialWeight = kNetwork ? 375 : 750;
  static constexpr int16_t kInitialNetworkWeight = 5000;

  // One of the two matches: of every lane, and of the byte and the bit being coded.
  struct Matcher {
    MatchModel model;
    std::vector<Match> lanes;
    std::array<MixerCell, MatchModel::kContexts> maps{};
    uint32_t expected = 0;  // the byte behind a leading one, 0 once it is contradicted
    uint32_t trust = 0;
    int bit = 0;

    Matcher(int min_length, size_t raw_size, size_t lanes_)
        : model(min_length, std::clamp(static_cast<int>(std::bit_width(raw_size)), 10, 22)),
          lanes(lanes_) {
      for (uint32_t i = 0; i < MatchModel::kContexts; ++i) {
        const uint32_t length = i / 4;
        maps[i] = MixerCell::starting(61440 * (length + 1) / (length + 2), 4);
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
    InputPair inputs() const {
      const auto [stretched, linear] = maps[trust].inputs;
      if (expected == 0) return {};
      if (bit) return {stretched, linear};
      return {static_cast<int16_t>(-stretched), static_cast<int16_t>(-linear)};
    }
    void learn(int actual) {
      if (expected != 0) maps[trust].learn(actual == bit, kMatchMapLimit);
    }
  };

  void start_maps() {
    for (auto& map : maps_) {
      for (int state = 1; state < history_.states(); ++state) {
        map[static_cast<size_t>(state)] = MixerCell::starting(history_.initial_p16(state), 10);
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
    begin_byte<Mix>(lane, weights);
    for (int i = 0; i < 8; ++i) {
      if (i == 4) begin_nibble<Mix>(partial_);
      begin_bit<Mix>(i);
      if (!sure_ && !found_) find_buckets(lane, i);
      const int bit = coder.code(i, sure_ ? sure_p1() : predict<Mix>(i));
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
      if constexpr (kNetwork) learn_network(bit);
      if (!sure_) learn<Mix>(bit);
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

  template <class Mix>
  void begin_byte(size_t lane, const uint32_t* weights) {
    const Lane& state = lanes_[lane];
    partial_ = 1;
    node_ = 1;
    match_.begin_byte(lane);
    long_match_.begin_byte(lane);
    c1_ = state.byte_back(1);
    const uint32_t c2 = state.byte_back(2);
    order3_ = static_cast<uint32_t>(state.recent(3));
    if constexpr (Profile::kSamples) {
      likely_ = samples_[lane].guess();
      kind_ = samples_[lane].activity();
      order2_ = likely_ | kind_ << 8;
    } else if constexpr (Profile::kCode) {
      likely_ = kind_ = state.x86().kind();
      order2_ = c1_ | c2 << 8;
    } else {
      likely_ = c1_;
      kind_ = kByteClass[c1_] * 16u + kByteClass[c2];
      order2_ = c1_ | c2 << 8;
    }
    variant_ = (variant_ + 5) % BitHistory::kVariants;
    hashes_[lane][kContexts - 1] =
        context_hash<Context::kExpected>(state, past_, match_.lanes[lane]);
    if constexpr (kNetwork) {
      network_ = weights;
      Mix::groups(weights, &network_sums_[16]);
    }
    begin_nibble<Mix>(0);
  }

  void prefetch_buckets(size_t lane, uint32_t partial) const {
    for (const uint32_t hash : hashes_[lane]) table_.prefetch(nibble_hash(hash, partial));
  }

  // Before the first bit i of a nibble that is not sure.
  void find_buckets(size_t lane, int i) {
    const uint32_t partial = i < 4 ? 0 : partial_ >> (i - 4);
    for (size_t slot = 0; slot < kHashes; ++slot) {
      buckets_[slot] = table_.find(nibble_hash(hashes_[lane][slot], partial));
    }
    buckets_[kHashes] = order0_.data() + 16 * nibble_number(partial);
    found_ = true;
    if (node_ == 1) return;
    // A bucket is kept by its history at node 1, which must not wait for bits that are not sure.
    const size_t first = node_ >> (std::bit_width(node_) - 2) & 1;
    for (uint8_t* bucket : buckets_) bucket[1] = history_.next()[variant_][2u * bucket[1] + first];
  }

  // Of the nibbles that a byte can begin and go on with.
  static uint32_t nibble_number(uint32_t partial) { return partial == 0 ? 0 : partial - 15; }

  // The refinements' contexts at node 0 of the nibble, and what the network says of its nodes.
  template <class Mix>
  void begin_nibble(uint32_t partial) {
    found_ = false;
    const auto last_of = [&](uint32_t byte) {
      return 16 * (kNibbles * byte + nibble_number(partial));
    };
    nibble_.likely = last_of(likely_);
    nibble_.last = last_of(c1_);
    nibble_.pair = hash_of(order2_, partial) >> (32 - kHashedBits + 4) << 4;
    nibble_.order3 = hash_of(order3_, partial) >> (32 - kHashedBits + 4) << 4;
    apm1_.prefetch(nibble_.likely + 1);
    apm2_.prefetch(nibble_.pair + 1);
    if constexpr (kNetwork) {
      if (partial != 0) {
        for (size_t i = 0; i < 16; ++i)
          network_sums_[16 + i] = network_[16 * (partial - 16) + i] >> kWeightShift;
      }
      Mix::nodes(network_sums_, network_nodes_);
      network_apm1_.prefetch(nibble_.last + 1);
      network_apm2_.prefetch(nibble_.order3 + 1);
    }
  }

  // What is known before the models are asked.  A bit is sure if the network, what its opinion was
  // worth before, and the match all say so: it costs next to nothing, and the models are spared.
  template <class Mix>
  void begin_bit(int i) {
    match_.begin_bit(i, partial_);
    long_match_.begin_bit(i, partial_);
    if (kAblation && match_off_) match_.expected = 0;
    if (kAblation && long_match_off_) long_match_.expected = 0;
    if constexpr (kNetwork) {
      predict_network<Mix>();
      const bool one = network_stretched_ > 0;
      const auto [first, second] = inputs_.extra[kRefinedPair];
      const int least = one ? std::min({network_stretched_, int{first}, int{second}})
                            : -std::max({network_stretched_, int{first}, int{second}});
      sure_ = least >= kSure && (match_.expected == 0 || (match_.bit != 0) == one);
    }
  }

  uint32_t sure_p1() const {
    return std::clamp((refined_[0] + refined_[1] + 1) >> 1, 1u, uint32_t{kProbOne - 1});
  }

  // The probability of a 1, of 22 bits, never 0 or 1.
  template <class Mix>
  uint32_t predict(int i) {
    // What the next bit may need, travels meanwhile: its nodes are neighbors.
    apm1_.prefetch_two(nibble_.likely + 2 * node_);
    apm2_.prefetch_two(nibble_.pair + 2 * node_);
    look_up_slots();
    inputs_.extra[kMatchPair] = match_.inputs();
    inputs_.extra[kLongMatchPair] = long_match_.inputs();
    Mix::gather(inputs_);
    if (kAblation && !kLinear) {
      for (size_t slot = 0; slot < kSlots; ++slot) inputs_.pairs[slot].linear = 0;
    }
    select_weights(static_cast<uint32_t>(i));
    Mix::dot(inputs_, selected_, outputs_);
    for (size_t s = 0; kAblation && s < kSets; ++s) outputs_[s] = set_off_[s] ? 0 : outputs_[s];
    mixed_ = Mix::mix(outputs_, final_);
    const auto mixed = static_cast<uint32_t>(squash(mixed_));
    const uint32_t a = apm1_.refine(mixed_, nibble_.likely + node_);
    const uint32_t b = apm2_.refine(mixed_, nibble_.pair + node_);
    uint32_t c = mixed;
    if constexpr (kNetwork) c = apm3_.refine(mixed_, opinions());
    const uint32_t p1 = kAblation && apm_off_ ? mixed : (mixed + a + b + c + 2) >> 2;
    return std::clamp(p1, 1u, uint32_t{kProbOne - 1});
  }

  void look_up_slots() {
    for (size_t slot = 0; slot < kSlots; ++slot) {
      const uint8_t state = buckets_[slot][node_];
      states_[slot] = state;
      inputs_.cells[slot] = &maps_[slot][kAblation && off_[slot] ? 0 : state];
    }
  }

  template <class Mix>
  void predict_network() {
    network_stretched_ = network_nodes_[node_];
    inputs_.extra[kNetworkPair] = {
        static_cast<int16_t>(network_stretched_),
        static_cast<int16_t>(linear(static_cast<uint32_t>(squash(network_stretched_))))};
    refined_ = {network_apm1_.refine(network_stretched_, nibble_.last + node_),
                network_apm2_.refine(network_stretched_, nibble_.order3 + node_)};
    inputs_.extra[kRefinedPair] = Mix::stretch_two(refined_[0], refined_[1]);
    if (kAblation && network_apm_off_) inputs_.extra[kRefinedPair] = {};
    network_apm1_.prefetch_two(nibble_.last + 2 * node_);
    network_apm2_.prefetch_two(nibble_.order3 + 2 * node_);
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
    final_ = final_sets_.set(partial_);
  }

  template <class Mix>
  void learn(int bit) {
    learn_slots<Mix>(bit);
    match_.learn(bit);
    long_match_.learn(bit);
    learn_weights<Mix>(bit << kProbBits);
    apm1_.update(bit, kApmLimit);
    apm2_.update(bit, kApmLimit);
    if constexpr (kNetwork) apm3_.update(bit, kApmLimit);
  }

  template <class Mix>
  void learn_slots(int bit) {
    Mix::learn(inputs_, bit, kMapLimit);
    const auto& next = history_.next()[variant_];
    for (size_t slot = 0; slot < kSlots; ++slot) {
      buckets_[slot][node_] = next[static_cast<size_t>(2 * states_[slot] + bit)];
    }
  }

  void learn_network(int bit) {
    network_apm1_.update(bit, kApmLimit);
    network_apm2_.update(bit, kApmLimit);
  }

  // Every set learns from its own error; the final weights from that of the whole.
  template <class Mix>
  void learn_weights(int target) {
    for (size_t s = 0; s < kSets; ++s) {
      const int error = target - squash(outputs_[s]);
      Mix::train(inputs_, selected_[s], (error * rate_ + (1 << 13)) >> 14);
    }
    Mix::train_final(outputs_, final_, (target - squash(mixed_)) * kFinalRate >> (kProbBits - 12));
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
  alignas(64) std::array<std::array<MixerCell, 256>, kSlots> maps_{};
  Matcher match_, long_match_;
  std::array<Weights, 5> first_;
  WeightSets<int32_t, kMaxSets> final_sets_;
  Apm apm1_{256 * kNibbles * 16};
  Apm apm2_{1 << kHashedBits};
  Apm apm3_{kNetwork ? 16 * 256 : 1};
  Apm network_apm1_{kNetwork ? 256 * kNibbles * 16 : 1};
  Apm network_apm2_{kNetwork ? 1 << kHashedBits : 1};
  uint32_t coded_ = 0;
  int rate_ = kRate + kExtraRate;
  size_t variant_ = 0;

  // Of the byte being coded.
  uint32_t partial_ = 1, node_ = 1;
  uint32_t c1_ = 0, order2_ = 0, order3_ = 0;
  uint32_t likely_ = 0, kind_ = 0;  // what selects weights and refinements: docs/mixer.md
  struct {
    size_t likely, last, pair, order3;
  } nibble_{};
  std::array<uint8_t*, kSlots> buckets_{};
  bool found_ = false;                                   // the buckets of this nibble
  const uint32_t* network_ = nullptr;                    // its 256 weights
  alignas(32) std::array<uint32_t, 32> network_sums_{};  // of the nibble's nodes and leaves
  alignas(32) std::array<int32_t, 16> network_nodes_{};  // their stretched probabilities

  // Of the bit being coded.
  int network_stretched_ = 0;
  std::array<uint32_t, 2> refined_{};  // probabilities
  bool sure_ = false;
  std::array<uint8_t, kSlots> states_{};
  Inputs inputs_;
  std::array<int16_t*, kSets> selected_{};
  alignas(32) std::array<int32_t, kMaxSets> outputs_{};
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

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
  virtual void encode(int lane, uint8_t byte, const Opinions& opinions, RangeEncoder& encoder) = 0;
  virtual uint8_t decode(int lane, const uint32_t* weights, RangeDecoder& decoder) = 0;
  virtual uint64_t state_hash() const = 0;
};

// What a network says of a byte's bits, from its weights.
struct NetworkBits {
  const uint32_t* weights;
  std::array<uint32_t, 32> sums;      // of a nibble's nodes and leaves
  std::array<int32_t, 16> stretched;  // its nodes' probabilities

  explicit NetworkBits(const uint32_t* weights_) : weights(weights_) {}

  // partial: 0 for the first nibble, 16..31 for the second.
  template <class Mix>
  const int32_t* nodes(uint32_t partial) {
    if (partial == 0) {
      Mix::groups(weights, &sums[16]);
    } else {
      for (size_t i = 0; i < 16; ++i)
        sums[16 + i] = weights[16 * (partial - 16) + i] >> kWeightShift;
    }
    Mix::nodes(sums, stretched);
    return stretched.data();
  }
};

struct EncodeBits {
  RangeEncoder& encoder;
  uint32_t byte;
  const Opinions& opinions;

  template <class Mix>
  const int32_t* nodes(uint32_t partial) const {
    return opinions.nodes[partial != 0].data();
  }
  int code(int i, uint32_t p1) {
    const bool bit = byte >> (7 - i) & 1;
    encoder.encode_bit(bit, p1, kProbBits);
    return bit;
  }
};

struct DecodeBits {
  RangeDecoder& decoder;
  NetworkBits network;

  template <class Mix>
  const int32_t* nodes(uint32_t partial) {
    return network.nodes<Mix>(partial);
  }
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
  static constexpr bool uses(Context wanted) {
    return std::ranges::find(Profile::kContexts, wanted) != std::end(Profile::kContexts);
  }
  static constexpr bool kPairs = uses(Context::kAfterPair);
  static constexpr bool kPeriods = uses(Context::kRecordAbove) || uses(Context::kRecordColumn);
  static constexpr size_t kHashes =
      kContexts + (Profile::kSamples ? SamplePredictor::kContexts : 0);
  static constexpr bool kOrder0 = !kNetwork;               // the network knows it better
  static constexpr size_t kHistories = kHashes + kOrder0;  // the last is order 0
  // The slots of the mixer, whose cells learn: histories and the two matches.
  static constexpr size_t kMatchSlot = kHistories, kLongMatchSlot = kHistories + 1;
  static constexpr size_t kSlots = kHistories + 2;
  using Inputs = MixInputs<kSlots, 1>;  // and the network's opinion, or a constant
  static constexpr size_t kSets = 4;
  using Weights = WeightSets<int16_t, Inputs::kInputs>;

  // Learning rates, in 1/16: of the first layer it starts at the sum and falls to kRate.
  static constexpr int kRate = kNetwork ? 18 : 14;
  static constexpr int kExtraRate = kNetwork ? 40 : 24;
  static constexpr uint32_t kExtraRateBytes = 16384;  // where half of the extra is gone
  static constexpr int kFinalRate = kNetwork ? 5 : 6;
  static constexpr int kSure = 1536;  // 6 nats: 1 in 404
  static constexpr int kCaution = 1024, kMostCaution = 1 << 16, kCautionFades = 512;
  static constexpr uint32_t kMapLimit = 255;
  static constexpr uint32_t kApmLimit = kNetwork ? 255 : 127;
  static constexpr uint32_t kLevels = 4;  // of recent errors
  static constexpr size_t kFinalSets = kNetwork ? kLevels * 16 : 256;
  static_assert(!kNetwork || kHistories < 16);
  static constexpr int kMinMatch = 5, kMinLongMatch = 20;
  static constexpr uint32_t kNibbles = 17;
  static constexpr uint32_t kColumns = 128;
  static constexpr int kHashedBits = 16;  // of the contexts of hashed refinements

 public:
  Engine(const MixerParams& params, size_t raw_size, int lanes)
      : stride_(static_cast<uint32_t>(lane_stride(raw_size, lanes))),
        table_(params.log2_memory, raw_size),
        match_(kMinMatch, raw_size, static_cast<size_t>(lanes)),
        long_match_(kMinLongMatch, raw_size, static_cast<size_t>(lanes)),
        first_{Weights(MatchModel::kContexts * 8, kInitialWeight),
               Weights(kNetwork ? 256 * kLevels : 256, kInitialWeight),
               Weights(kNetwork ? 256 * kLevels : 256, kInitialWeight),
               Weights(256 * (kNetwork ? kLevels : 8), kInitialWeight)},
        final_sets_(kFinalSets, 0) {
    for (size_t s = 0; s < kSets; ++s) final_sets_.fill_input(s, 65536 / kSets);
    inputs_.extra[0] = {256, 0};
    past_.bytes = AlignedArray<uint8_t>(raw_size);
    for (size_t i = 0; i < static_cast<size_t>(lanes); ++i) {
      const size_t begin = std::min(stride_ * i, raw_size);
      lanes_.emplace_back(static_cast<uint32_t>(begin),
                          static_cast<uint32_t>(std::min(begin + stride_, raw_size)),
                          Profile::kCode);
    }
    active_ = lanes_.size();
    hashes_.resize(lanes_.size());
    caution_.resize(lanes_.size());
    recent_.resize(lanes_.size());
    first_hashes_.resize(lanes_.size());
    if (Profile::kSamples) samples_.resize(lanes_.size());
    start_maps();
    if (kNetwork) {
      for (Weights& sets : first_) sets.fill_input(2 * (kSlots), kInitialNetworkWeight);
    }
    for (size_t lane = 0; lane < lanes_.size(); ++lane) prepare(lane);
    mark_ablated();
  }

  void encode(int lane, uint8_t byte, const Opinions& opinions, RangeEncoder& encoder) override {
    code_byte(static_cast<size_t>(lane), EncodeBits{encoder, byte, opinions});
  }

  uint8_t decode(int lane, const uint32_t* weights, RangeDecoder& decoder) override {
    return code_byte(static_cast<size_t>(lane), DecodeBits{decoder, NetworkBits{weights}});
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

  // The errors of a lane's last 32 bits or so, of 2^16: the network's, and by how much the mixer's
  // were smaller.  They tell how far the network is to be trusted in a text like this one.
  struct Recent {
    int trouble = 0, gain = 0;

    void count(int bit, uint32_t network_p1, uint32_t p1, bool sure) {
      const auto error = [&](uint32_t p) {
        return static_cast<int>((bit != 0 ? kProbOne - p : p) >> (kProbBits - 16));
      };
      trouble += (error(network_p1) - trouble) >> 5;
      if (!sure) gain += (error(network_p1) - error(p1) - gain) >> 5;
    }
    uint32_t trouble_level() const {
      // int or unsigned: the standard changed.
      const auto bits = static_cast<uint32_t>(std::bit_width(static_cast<uint32_t>(trouble) >> 12));
      return std::min(bits, 3u);
    }
    uint32_t gain_level() const { return gain < 0 ? 0 : 1u + (gain >= 512) + (gain >= 2048); }
  };

  // One of the two matches: of every lane, and of the byte being coded.
  struct Matcher {
    MatchModel model;
    std::vector<Match> lanes;
    // By trust and the bit expected; the last says nothing, for want of a match.
    std::array<MixerCell, 2 * MatchModel::kContexts + 1> cells{};
    uint32_t expected = 0;  // the byte behind a leading one, 0: none
    uint32_t trust = 0;

    Matcher(int min_length, size_t raw_size, size_t lanes_)
        : model(min_length, std::clamp(static_cast<int>(std::bit_width(raw_size)), 10, 22)),
          lanes(lanes_) {
      for (uint32_t i = 0; i < MatchModel::kContexts; ++i) {
        const uint32_t right = 61440 * (i / 4 + 1) / (i / 4 + 2);
        cells[2 * i] = MixerCell::starting(65536 - right, 4);
        cells[2 * i + 1] = MixerCell::starting(right, 4);
      }
    }

    void begin_byte(size_t lane) {
      const Match& match = lanes[lane];
      expected = match.expected < 0 ? 0 : static_cast<uint32_t>(match.expected) | 256;
      trust = MatchModel::trust(match);
    }
    // Whether the bits so far are those expected.
    bool holds(int i, uint32_t partial) const { return expected >> (8 - i) == partial; }
    uint32_t bit(int i) const { return expected >> (7 - i) & 1; }
    MixerCell* cell(int i, uint32_t partial) {
      return &cells[holds(i, partial) ? 2 * trust + bit(i) : 2 * MatchModel::kContexts];
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
    for (size_t i = kContexts; i < kHashes; ++i) {
      constexpr const char* kSampleNames[] = {"sample0", "sample1", "sample2", "sample3",
                                              "sample4", "sample5", "sample6", "sample7",
                                              "sample8", "sample9"};
      off_[i] = ablated(kSampleNames[i - kContexts]);
    }
    if (kOrder0) off_[kHashes] = ablated("order0");
    constexpr const char* kSetNames[] = {"set-match", "set-partial", "set-byte", "set-classes"};
    for (size_t s = 0; s < kSets; ++s) set_off_[s] = ablated(kSetNames[s]);
    match_off_ = ablated("match");
    long_match_off_ = ablated("longmatch");
    apm_off_ = ablated("apm");
  }

  template <class Coder>
  uint8_t code_byte(size_t lane, Coder&& coder) {
#if defined(__x86_64__)
    if (avx2_) return code_avx2(lane, coder);
#endif
    return code_portable(lane, coder);
  }
  template <class Coder>
  __attribute__((flatten)) uint8_t code_portable(size_t lane, Coder& coder) {
    return code<PortableKernel>(lane, coder);
  }
#if defined(__x86_64__)
  template <class Coder>
  __attribute__((target("avx2,bmi,bmi2"), flatten)) uint8_t code_avx2(size_t lane, Coder& coder) {
    return code<Avx2Kernel>(lane, coder);
  }
#endif

  // One byte of a lane, most significant bit first.
  template <class Mix, class Coder>
  uint8_t code(size_t lane, Coder& coder) {
    if (lane == 0) begin_step();
    if (kNetwork && lane + 1 < active_) fetch(lane + 1);
    begin_byte(lane);
    begin_nibble<Mix>(lane, 0, coder);
    for (int i = 0; i < 8; ++i) {
      begin_bit(i);
      if (!sure_ && !found_) find_buckets(lane, i);
      const uint32_t p1 = sure_ ? network_p1_ : predict<Mix>(i);
      const int bit = coder.code(i, p1);
      if constexpr (kNetwork) recent_[lane].count(bit, network_p1_, p1, sure_);
      const uint32_t partial = partial_ * 2 + static_cast<uint32_t>(bit);
      // The cache lines that come next travel while this bit is learned.
      if (i == 3) begin_nibble<Mix>(lane, partial, coder);
      if (i == 7) {
        lanes_[lane].template append<kPairs, kPeriods>(static_cast<uint8_t>(partial), past_);
        if constexpr (Profile::kSamples) layout_.count_byte(lanes_[lane], past_);
        prepare(lane);
        if (!kNetwork) fetch(lane);
      }
      if (!sure_) {
        learn<Mix>(bit);
      } else if ((bit != 0) != (opinion_ > 0)) {
        caution_[lane] = std::min(2 * caution_[lane] + kCaution, kMostCaution);
      }
      partial_ = partial;
      node_ = i == 3 ? 1 : node_ * 2 + static_cast<uint32_t>(bit);
    }
    count_byte();
    return static_cast<uint8_t>(partial_);
  }

  // Before the first lane of a step: the matches of all lanes that have a byte move on.
  void begin_step() {
    while (active_ > 1 && lanes_[active_ - 1].pos() == lanes_[active_ - 1].end()) --active_;
    if (kNetwork) fetch(0);
    const auto each = [&](auto&& move) {
      for (Matcher* matcher : {&match_, &long_match_}) {
        for (size_t i = 0; i < active_; ++i) move(matcher->model, matcher->lanes[i], lanes_[i]);
      }
    };
    each([](auto& model, Match& match, const Lane& lane) { model.fetch(match, lane); });
    each([&](auto& model, Match& match, const Lane& lane) { model.follow(match, lane, past_); });
    each([&](auto& model, Match& match, const Lane& lane) {
      model.settle(match, lane, lanes_, stride_, past_);
    });
    for (size_t i = 0; i < active_; ++i) {
      constexpr size_t kLast = kContexts - 1;
      hashes_[i][kLast] = context_hash<Context::kExpected>(lanes_[i], past_, match_.lanes[i]);
      first_hashes_[i][kLast] = nibble_hash(hashes_[i][kLast], 0);
      if (!kNetwork) table_.prefetch(first_hashes_[i][kLast]);
    }
  }

  // The contexts of a lane's next byte but the last, which needs the match.
  void prepare(size_t lane) { prepare(lane, std::make_index_sequence<kContexts - 1>()); }
  template <size_t... i>
  void prepare(size_t lane, std::index_sequence<i...>) {
    auto& hashes = hashes_[lane];
    ((hashes[i] = context_hash<Profile::kContexts[i]>(lanes_[lane], past_, match_.lanes[lane])),
     ...);
    if constexpr (Profile::kSamples) {
      samples_[lane].advance(lanes_[lane], past_, layout_);
      for (size_t j = 0; j < SamplePredictor::kContexts; ++j)
        hashes[kContexts + j] = samples_[lane].context(j);
    }
    for (size_t j = 0; j < kHashes; ++j) first_hashes_[lane][j] = nibble_hash(hashes[j], 0);
  }

  // Sends for what the first nibble of a lane's next byte needs.  Beside a network that is early
  // enough, and not too early, while the lane before is coded: between two steps the network's
  // weights go through the caches.
  [[gnu::always_inline]] void fetch(size_t lane) const {
    for (const uint32_t hash : first_hashes_[lane]) table_.prefetch(hash);
    if constexpr (kNetwork) {
      const Selectors select = selectors(lane);
      const NibblePlaces places = nibble_places(select, 0);
      for (size_t node = 1; node < 4; ++node) {
        apm2_.prefetch(places.pair + node);
        apm3_.prefetch(places.column + node);
      }
      const Recent& recent = recent_[lane];
      first_[2].prefetch(select.c1 * kLevels + recent.trouble_level());
      first_[3].prefetch(select.kind * kLevels + recent.gain_level());
    }
  }

  // partial: 0 for the first nibble, 16..31 for the second.
  static uint32_t nibble_hash(uint32_t hash, uint32_t partial) {
    const uint32_t h = (hash + partial * kHashB) * kHashA;
    return h ^ h >> 15;
  }

  // What of a lane's past selects weights and refinements: docs/mixer.md.
  struct Selectors {
    uint32_t c1, order2, likely, kind, column;
  };
  Selectors selectors(size_t lane) const {
    const Lane& state = lanes_[lane];
    const uint32_t c1 = state.byte_back(1), c2 = state.byte_back(2);
    const uint32_t column = std::min(state.column(), kColumns - 1);
    if constexpr (Profile::kSamples) {
      const uint32_t likely = samples_[lane].guess(), kind = samples_[lane].activity();
      return {c1, likely | kind << 8, likely, kind, column};
    } else if constexpr (Profile::kCode) {
      const uint32_t kind = state.x86().kind();
      return {c1, c1 | c2 << 8, kind, kind, column};
    } else {
      return {c1, c1 | c2 << 8, c1, kByteClass[c1] * 16u + kByteClass[c2], column};
    }
  }

  void begin_byte(size_t lane) {
    partial_ = 1;
    node_ = 1;
    match_.begin_byte(lane);
    long_match_.begin_byte(lane);
    if (kAblation && match_off_) match_.expected = 0;
    if (kAblation && long_match_off_) long_match_.expected = 0;
    select_ = selectors(lane);
    if constexpr (kNetwork) {
      now_ = &recent_[lane];
      caution_[lane] -= caution_[lane] / kCautionFades + (caution_[lane] > 0);
      least_sure_ = kSure + caution_[lane];
    }
    variant_ = (variant_ + 5) % BitHistory::kVariants;
  }

  // Before the first bit i of a nibble that is not sure.
  void find_buckets(size_t lane, int i) {
    const uint32_t partial = i < 4 ? 0 : partial_ >> (i - 4);
    for (size_t slot = 0; slot < kHashes; ++slot)
      buckets_[slot] = table_.find(nibble_hash(hashes_[lane][slot], partial));
    if constexpr (kOrder0) buckets_[kHashes] = order0_.data() + 16 * nibble_number(partial);
    found_ = true;
    if (node_ == 1) return;
    // A bucket is kept by its history at node 1, which must not wait for bits that are not sure.
    const size_t first = node_ >> (std::bit_width(node_) - 2) & 1;
    for (uint8_t* bucket : buckets_) bucket[1] = history_.next()[variant_][2u * bucket[1] + first];
  }

  // Of the nibbles that a byte can begin and go on with.
  static uint32_t nibble_number(uint32_t partial) { return partial == 0 ? 0 : partial - 15; }

  // The refinements' contexts at node 0 of a nibble.
  struct NibblePlaces {
    size_t likely, pair, column;
  };
  static NibblePlaces nibble_places(const Selectors& select, uint32_t partial) {
    const auto beside = [&](uint32_t byte) -> size_t {
      return 16 * (kNibbles * byte + nibble_number(partial));
    };
    const auto hashed = [&](uint32_t x) -> size_t {
      return hash_of(x, partial) >> (32 - kHashedBits + 4) << 4;
    };
    return {beside(select.likely), hashed(select.order2), beside(select.column)};
  }

  // These, and what the network says of the nodes.  Sends for the cache lines of the second nibble
  // and of the refinements; in a nibble that the network is sure of, nothing is looked up.
  template <class Mix, class Coder>
  void begin_nibble(size_t lane, uint32_t partial, Coder& coder) {
    found_ = false;
    nibble_ = nibble_places(select_, partial);
    if constexpr (kNetwork) {
      nodes_ = coder.template nodes<Mix>(partial);
      if (likely_sure()) return;
      apm3_.prefetch(nibble_.column + 1);
    } else {
      apm1_.prefetch(nibble_.likely + 1);
    }
    apm2_.prefetch(nibble_.pair + 1);
    if (partial == 0) return;
    for (const uint32_t hash : hashes_[lane]) table_.prefetch(nibble_hash(hash, partial));
  }

  // Whether the network is sure of the nibble that it finds most likely.
  bool likely_sure() const {
    uint32_t node = 1;
    for (int i = 0; i < 4; ++i) {
      if (std::abs(nodes_[node]) < least_sure_) return false;
      node = 2 * node + (nodes_[node] > 0);
    }
    return true;
  }

  // What is known before the models are asked.  A bit is sure if the network says so, by more than
  // it has failed of late, and the match does not object: it costs next to nothing, and the models
  // are spared.
  void begin_bit(int i) {
    match_holds_ = match_.holds(i, partial_);
    if constexpr (kNetwork) {
      opinion_ = nodes_[node_];
      network_p1_ = static_cast<uint32_t>(squash(opinion_));
      sure_ = std::abs(opinion_) >= least_sure_ &&
              !(match_holds_ && (match_.bit(i) != 0) != (opinion_ > 0));
    }
  }

  // The probability of a 1, of 22 bits, never 0 or 1.
  template <class Mix>
  uint32_t predict(int i) {
    // What this bit and the next may need, travels meanwhile: the nodes of the next are neighbors.
    if constexpr (kNetwork) {
      apm1_.prefetch(opinions(i));
      apm3_.prefetch_two(nibble_.column + 2 * node_);
    } else {
      apm1_.prefetch_two(nibble_.likely + 2 * node_);
    }
    apm2_.prefetch_two(nibble_.pair + 2 * node_);
    look_up_slots(i);
    if constexpr (kNetwork) {
      inputs_.extra[0] = {static_cast<int16_t>(opinion_),
                          static_cast<int16_t>(linear(network_p1_))};
    }
    Mix::gather(inputs_);
    if (kAblation && !kLinear) {
      for (size_t slot = 0; slot < kHistories; ++slot) inputs_.pairs[slot].linear = 0;
    }
    select_weights(i);
    Mix::dot(inputs_, selected_, outputs_);
    for (size_t s = 0; kAblation && s < kSets; ++s) outputs_[s] = set_off_[s] ? 0 : outputs_[s];
    mixed_ = Mix::mix(outputs_, final_);
    const auto mixed = static_cast<uint32_t>(squash(mixed_));
    const uint32_t a = apm1_.refine(mixed_, kNetwork ? opinions(i) : nibble_.likely + node_);
    const uint32_t b = apm2_.refine(mixed_, nibble_.pair + node_);
    const uint32_t c = kNetwork ? apm3_.refine(mixed_, nibble_.column + node_) : mixed;
    const uint32_t p1 = kAblation && apm_off_ ? mixed : (mixed + a + b + c + 2) >> 2;
    return std::clamp(p1, 1u, uint32_t{kProbOne - 1});
  }

  void look_up_slots(int i) {
    const uint32_t node = node_;
    seen_ = 0;
    for (size_t slot = 0; slot < kHistories; ++slot) {
      const uint8_t state = kAblation && off_[slot] ? 0 : buckets_[slot][node];
      seen_ += state != 0;
      inputs_.cells[slot] = &maps_[slot][state];
    }
    inputs_.cells[kMatchSlot] = match_.cell(i, partial_);
    inputs_.cells[kLongMatchSlot] = long_match_.cell(i, partial_);
  }

  // What the network and the match say, for a refinement.
  size_t opinions(int i) const {
    const uint32_t match = match_holds_ ? 2 * match_.trust + match_.bit(i) : 128 + (opinion_ > 0);
    return static_cast<uint32_t>(std::abs(opinion_)) / 192 * 256 + match;
  }

  void select_weights(int i) {
    const auto bit = static_cast<uint32_t>(i);
    const uint32_t trust = match_holds_ ? match_.trust : 0;
    if constexpr (kNetwork) {
      const uint32_t trouble = now_->trouble_level(), gain = now_->gain_level();
      selected_[0] = first_[0].set((trust / 4 * kLevels + trouble) * 8 + bit);
      selected_[1] = first_[1].set(partial_ * kLevels + gain);
      selected_[2] = first_[2].set(select_.c1 * kLevels + trouble);
      selected_[3] = first_[3].set(select_.kind * kLevels + gain);
      final_ = final_sets_.set(gain * 16 + seen_);
    } else {
      selected_[0] = first_[0].set(trust * 8 + bit);
      selected_[1] = first_[1].set(partial_);
      selected_[2] = first_[2].set(select_.c1);
      selected_[3] = first_[3].set(select_.kind * 8 + bit);
      final_ = final_sets_.set(partial_);
    }
  }

  template <class Mix>
  void learn(int bit) {
    learn_slots<Mix>(bit);
    learn_weights<Mix>(bit << kProbBits);
    apm1_.update(bit, kApmLimit);
    apm2_.update(bit, kApmLimit);
    if constexpr (kNetwork) apm3_.update(bit, kApmLimit);
  }

  template <class Mix>
  void learn_slots(int bit) {
    Mix::learn(inputs_, bit, kMapLimit);
    const uint8_t* const next = history_.next()[variant_].data() + bit;
    const uint32_t node = node_;
    for (uint8_t* bucket : buckets_) bucket[node] = next[2 * bucket[node]];
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
  size_t active_ = 0;  // lanes with a byte in this step: always the first ones
  std::vector<std::array<uint32_t, kHashes>> hashes_;        // (lanes): the contexts
  std::vector<std::array<uint32_t, kHashes>> first_hashes_;  // (lanes): of their first nibbles
  std::vector<int> caution_;                                 // (lanes)
  std::vector<Recent> recent_;                               // (lanes)
  SampleLayout layout_;
  std::vector<SamplePredictor> samples_;

  HistoryTable table_;
  std::array<uint8_t, 17 * 16> order0_{};
  alignas(64) std::array<std::array<MixerCell, 256>, kHistories> maps_{};
  Matcher match_, long_match_;
  std::array<Weights, kSets> first_;
  WeightSets<int32_t, kMaxSets> final_sets_;
  Apm apm1_{kNetwork ? 16 * 256 : 256 * kNibbles * 16};
  Apm apm2_{1 << kHashedBits};
  Apm apm3_{kNetwork ? kColumns * kNibbles * 16 : 1};
  uint32_t coded_ = 0;
  int rate_ = kRate + kExtraRate;
  size_t variant_ = 0;

  // Of the byte being coded.
  uint32_t partial_ = 1, node_ = 1;
  Selectors select_{};
  NibblePlaces nibble_{};
  std::array<uint8_t*, kHistories> buckets_{};
  bool found_ = false;              // the buckets of this nibble
  const int32_t* nodes_ = nullptr;  // what the network says of this nibble's bits
  int least_sure_ = kSure;
  const Recent* now_ = nullptr;

  // Of the bit being coded.
  int opinion_ = 0;  // of the network, stretched
  uint32_t network_p1_ = 0;
  uint32_t seen_ = 0;  // contexts that have a history
  bool match_holds_ = false;
  bool sure_ = false;
  Inputs inputs_;
  std::array<int16_t*, kSets> selected_{};
  alignas(32) std::array<int32_t, kMaxSets> outputs_{};
  int32_t* final_ = nullptr;
  int mixed_ = 0;

  // Only for measurements: mixer_ablation.h.
  std::array<bool, kHistories> off_{};
  std::array<bool, kSets> set_off_{};
  bool match_off_ = false, long_match_off_ = false, apm_off_ = false;
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

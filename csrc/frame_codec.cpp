// frame_codec.cpp: see frame_codec.h.
#include "frame_codec.h"

#include <algorithm>
#include <deque>
#include <stdexcept>
#include <string>

#include "cpu.h"
#include "distribution.h"
#include "engine.h"
#include "errors.h"
#include "lane_progress.h"
#include "range_coder.h"
#include "x86_targets.h"

namespace lmzip {
namespace {

constexpr size_t kBand = kTileRows;     // positions that are encoded at once
constexpr size_t kMinGroup = 4;         // lanes that are worth a thread, or a pipeline, decoding
constexpr size_t kMostStages = 4;       // of a pipeline
constexpr size_t kSlots = 3;            // bands whose opinions wait for the mixer
constexpr size_t kMostPredicting = 16;  // threads: one mixes no faster than some 14 predict

// Where the bytes of a frame are.
struct Pieces {
  size_t raw_size, lanes, stride;

  Pieces(size_t raw_size_, size_t lanes_)
      : raw_size(raw_size_), lanes(lanes_), stride((raw_size_ + lanes_ - 1) / lanes_) {}

  size_t begin(size_t lane) const { return std::min(lane * stride, raw_size); }
  size_t size(size_t lane) const { return std::min(raw_size - begin(lane), stride); }
  // Lanes with a byte at position t: always the first ones.
  size_t active(size_t t) const { return t < stride ? (raw_size - t + stride - 1) / stride : 0; }
};

void check(const FrameParams& params, size_t lanes) {
  const auto require = [](bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(what);
  };
  check_lanes(lanes);
  checked_threads(params.threads);
  require(params.method == Method::kMixer || params.model != nullptr, "this method needs a model");
  require(params.method == Method::kNetwork || (params.table_bits >= kMixerMinLog2Memory &&
                                                params.table_bits <= kMixerMaxLog2Memory),
          "the mixer's table has 2^16 to 2^30 bytes");
  require(params.method == Method::kMixer || params.profile != MixerProfile::kCode,
          "the profile code goes without a network");
}

bool has_mixer(const FrameParams& params) { return params.method != Method::kNetwork; }

MixerParams mixer_params(const FrameParams& params) {
  return {params.table_bits, params.profile, params.method == Method::kNetworkMixer};
}

// --- encoding ---

// Encoding knows all bytes from the start.  The work is a list of tasks that are started in order,
// by whichever thread is free, and each waits only for tasks before it, so there is always one that
// can go on.  Bands of kBand positions: the network takes a lane's band at once; the coder of the
// lane follows.  The mixer, for all lanes of a band, is run by the first thread alone, whenever a
// band is ready: between two threads its tables would move from one core's cache to the other's.
// Who waits for the mixer has left all gates of its lane, so the first thread never waits for it.
class FrameEncoder {
 public:
  FrameEncoder(const FrameParams& params, std::span<const uint8_t> raw, size_t lanes)
      : params_(params),
        model_(*params.model),
        raw_(raw),
        pieces_(raw.size(), lanes),
        coders_(lanes),
        gates_per_lane_(model_.arch().n_layers + 1),
        gates_(lanes * gates_per_lane_),
        cache_(model_, lanes) {
    const size_t bands = (pieces_.stride + kBand - 1) / kBand;
    if (has_mixer(params)) {
      mixer_.emplace_back(mixer_params(params), raw.size(), static_cast<int>(lanes));
      opinions_ = AlignedArray<Opinions>(std::min(bands, kSlots) * lanes * kBand);
      bands_ready_ = std::vector<std::atomic<uint32_t>>(bands);
    }
    for (size_t band = 0; band < bands; ++band) {
      for (size_t lane = 0; lane < pieces_.active(band * kBand); ++lane)
        tasks_.push_back({band, lane});
    }
  }

  Payloads run(Interrupt interrupt) {
    const size_t threads = std::clamp<size_t>(
        params_.threads, 1, std::min(tasks_.size(), most_encoding_threads(params_.method)));
    Job job(threads, std::move(interrupt));
    // So many predict faster than one thread mixes; it should not predict besides.
    const bool mixes_only = has_mixer(params_) && threads >= kThreadsPerMixer;
    run_threads(job, [&](size_t thread) {
      if (thread != 0 || !mixes_only) work(job, thread);
      if (thread == 0) mix_until(job, bands_ready_.size());
    });
    Payloads payloads;
    for (RangeEncoder& coder : coders_) payloads.push_back(coder.finish());
    return payloads;
  }

 private:
  static constexpr size_t kThreadsPerMixer = 8;
  struct Task {
    size_t band, lane;
  };

  void work(Job& job, size_t thread) {
    Workspace workspace(model_, kTileRows);
    AlignedArray<int32_t> logits(kTileRows * kLogits);
    for (size_t i; (i = next_task_.fetch_add(1)) < tasks_.size();) {
      job.check(thread);
      const auto [band, lane] = tasks_[i];
      predict(job, thread, band, lane, workspace, logits.data());
      while (thread == 0 && can_mix()) mix();
    }
  }

  void predict(Job& job, size_t thread, size_t band, size_t lane, Workspace& workspace,
               int32_t* logits) {
    const size_t begin = band * kBand, end = std::min(begin + kBand, pieces_.size(lane));
    const uint8_t* bytes = raw_.data() + pieces_.begin(lane);
    uint32_t history = 0;
    for (size_t t = begin < 4 ? 0 : begin - 4; t < begin; ++t)
      history = push_input(history, bytes[t]);
    Row rows[kTileRows];
    for (size_t t = begin; t < end; ++t) {
      rows[t - begin] = {static_cast<uint32_t>(lane), static_cast<uint32_t>(t), history};
      history = push_input(history, bytes[t]);
    }
    LaneProgress gate(job, thread, &gates_[lane * gates_per_lane_], static_cast<uint32_t>(begin),
                      static_cast<uint32_t>(end));
    forward(model_, {rows, end - begin}, cache_, workspace, logits, &gate);
    if (has_mixer(params_)) {
      hand_over(job, thread, band, lane, {bytes + begin, end - begin}, logits);
    } else {
      code(gate, lane, bytes + begin, end - begin, logits);
    }
  }

  void code(LaneProgress& gate, size_t lane, const uint8_t* bytes, size_t count,
            const int32_t* logits) {
    Distribution distribution;
    Interval intervals[kBand];
    for (size_t i = 0; i < count; ++i) {
      distribution.assign(RowKind::kLogits, logits + i * kLogits, kLogits);
      intervals[i] = distribution.interval(bytes[i]);
    }
    gate.enter(model_.arch().n_layers);
    for (size_t i = 0; i < count; ++i)
      coders_[lane].encode(intervals[i].lo, intervals[i].freq, kFreqBits);
    gate.leave(model_.arch().n_layers);
  }

  Opinions* opinions(size_t band, size_t lane) {
    return opinions_.data() + (band % kSlots * pieces_.lanes + lane) * kBand;
  }

  void hand_over(Job& job, size_t thread, size_t band, size_t lane, std::span<const uint8_t> bytes,
                 const int32_t* logits) {
    if (thread == 0) {
      mix_until(job, band < kSlots ? 0 : band - kSlots + 1);
    } else {
      job.wait(thread, [&] { return mixed_.load(std::memory_order_acquire) + kSlots > band; });
    }
    uint32_t weights[kLogits];
    for (size_t i = 0; i < bytes.size(); ++i) {
      logits_to_weights(logits + i * kLogits, kLogits, weights);
      opinions(band, lane)[i] = network_opinions(weights, bytes[i]);
    }
    bands_ready_[band].fetch_add(1, std::memory_order_release);
  }

  // The first thread: until so many bands are mixed.
  void mix_until(Job& job, size_t bands) {
    while (mixed_.load(std::memory_order_relaxed) < bands) {
      job.check(0);
      job.wait(0, [&] { return can_mix(); });
      mix();
    }
  }

  // Whether all lanes of the next band are predicted.
  bool can_mix() const {
    const size_t band = mixed_.load(std::memory_order_relaxed);
    return band < bands_ready_.size() &&
           bands_ready_[band].load(std::memory_order_acquire) == pieces_.active(band * kBand);
  }

  void mix() {
    const size_t band = mixed_.load(std::memory_order_relaxed);
    const size_t begin = band * kBand, end = std::min(begin + kBand, pieces_.stride);
    for (size_t t = begin; t < end; ++t) {
      for (size_t lane = 0; lane < pieces_.active(t); ++lane) {
        mixer_[0].encode_byte(static_cast<int>(lane), raw_[pieces_.begin(lane) + t],
                              opinions(band, lane)[t - begin], coders_[lane]);
      }
    }
    mixed_.store(band + 1, std::memory_order_release);
  }

  const FrameParams& params_;
  const ExactModel& model_;
  const std::span<const uint8_t> raw_;
  const Pieces pieces_;
  std::vector<RangeEncoder> coders_;  // (lanes)
  const size_t gates_per_lane_;
  std::vector<std::atomic<uint32_t>> gates_;  // (lanes, n_layers + 1)
  Cache cache_;
  std::vector<Task> tasks_;
  std::atomic<size_t> next_task_{0};
  // With the mixer only:
  std::vector<Mixer> mixer_;                        // one
  AlignedArray<Opinions> opinions_;                 // (kSlots, lanes, kBand)
  std::vector<std::atomic<uint32_t>> bands_ready_;  // (bands): lanes that are predicted
  std::atomic<size_t> mixed_{0};                    // bands
};

// --- decoding ---

// How the threads that decode a frame share it: so many pipelines, of so many stages each.
struct DecodingPlan {
  size_t pipelines, stages;

  size_t threads() const { return pipelines * stages; }
};

// Bytes of the weights of a stage.
size_t stage_weights(const ExactModel& model, size_t stages) {
  const auto bytes = [](const Product& p) { return p.weight.outputs * p.weight.inputs; };
  size_t layer = 0;
  for (const Layer& l : model.layers())
    layer = std::max(layer, bytes(l.qkv) + bytes(l.out) + bytes(l.up) + bytes(l.down));
  return model.layers().size() / stages * layer + bytes(model.head());
}

// The fewest stages, all of as many layers, whose weights stay in a level 2 cache, beside what else
// passes through it; one, if there are none for so many threads, or if too many threads would be
// left over.
DecodingPlan decoding_plan(const FrameParams& params, size_t lanes, size_t threads) {
  if (params.method == Method::kMixer) return {1, 1};
  const ExactModel& model = *params.model;
  const size_t layers = model.arch().n_layers, most = std::max<size_t>(lanes / kMinGroup, 1);
  const DecodingPlan apart = {std::min(threads, most), 1};
  if (params.stages != 0 && params.stages <= std::min(threads, layers))
    return {std::min(threads / params.stages, most), params.stages};
  for (size_t stages = 1; stages <= std::min({threads, layers, kMostStages}); ++stages) {
    if (layers % stages != 0 || stage_weights(model, stages) > level_2_cache() / 4 * 3) continue;
    const DecodingPlan plan = {std::min(threads / stages, most), stages};
    return 4 * plan.threads() >= 3 * apart.threads() ? plan : apart;
  }
  return apart;
}

// Lanes are cut into groups of neighbors.  Where each thread has its own group, it has at least
// kMinGroup lanes: for fewer rows the products take as long as the weights take to come from the
// outer caches, so that two threads with two lanes each are as fast as one thread with four.
//
// So the network is cut into stages of some layers each whose weights stay in a core's level 2
// cache: a thread works on one stage only.  As many threads as there are stages are a pipeline,
// through which as many groups pass, one behind the other, or as many as there are lanes: one lane
// is as fast as the caches of all its threads together, though only one thread works at a time.
//
// The mixer takes the groups in turn, step by step, which is the order of the lockstep.  It is run
// by whichever thread has nothing to predict: while one group is in the mixer, the others are in
// the network.
class FrameDecoder {
 public:
  FrameDecoder(const FrameParams& params, std::span<const std::span<const uint8_t>> payloads,
               std::span<uint8_t> raw)
      : params_(params),
        model_(*params.model),
        raw_(raw),
        pieces_(raw.size(), payloads.size()),
        coders_(payloads.begin(), payloads.end()),
        histories_(payloads.size()),
        cache_(model_, payloads.size()),
        plan_(decoding_plan(params, payloads.size(), checked_threads(params.threads))),
        together_(std::clamp<size_t>(payloads.size() / plan_.pipelines, 1, plan_.stages)),
        groups_(plan_.pipelines * together_) {
    const size_t used = pieces_.active(0);  // lanes that are not empty
    for (size_t i = 0; i < groups_.size(); ++i) {
      groups_[i].init(used * i / groups_.size(), used * (i + 1) / groups_.size(),
                      model_.arch().d_model);
    }
    if (has_mixer(params))
      mixer_.emplace_back(mixer_params(params), raw.size(), static_cast<int>(payloads.size()));
  }

  void run(Interrupt interrupt) {
    Job job(plan_.threads(), std::move(interrupt));
    run_threads(job, [&](size_t thread) { work(job, thread); });
  }

 private:
  struct Group {
    size_t begin = 0, end = 0;       // lanes
    AlignedArray<int32_t> x;         // (lanes, d_model): the residual stream between stages
    AlignedArray<int32_t> logits;    // (lanes, 256)
    AlignedArray<uint32_t> weights;  // the same of them, for the mixer
    // Stages that are done, over all steps, each of which ends with one more: its bytes.
    alignas(kCacheLine) std::atomic<size_t> done{0};

    void init(size_t begin_, size_t end_, size_t d_model) {
      begin = begin_, end = end_;
      x = AlignedArray<int32_t>((end - begin) * d_model);
      logits = AlignedArray<int32_t>((end - begin) * kLogits);
      weights = AlignedArray<uint32_t>((end - begin) * kLogits);
    }
  };

  enum class Next { kNothing, kPredict, kMix, kEnd };

  // The thread's stage takes the groups of its pipeline step by step.
  struct Place {
    size_t first_group, stage;
    size_t predicted = 0;  // groups, over all steps
  };

  void work(Job& job, size_t thread) {
    Place place{thread / plan_.stages * together_, thread % plan_.stages};
    const size_t most = (pieces_.lanes + groups_.size() - 1) / groups_.size();  // lanes of a group
    Workspace workspace(model_, std::min(most, kTileRows));
    Distribution distribution;
    for (Next next = Next::kNothing;; next = Next::kNothing) {
      job.check(thread);
      job.wait(thread, [&] { return (next = look(place)) != Next::kNothing; });
      if (next == Next::kEnd) return;
      if (next == Next::kMix) {
        mix();
      } else {
        take_stage(place, workspace, distribution);
      }
    }
  }

  void take_stage(Place& place, Workspace& workspace, Distribution& distribution) {
    const size_t t = place.predicted / together_;
    Group& group = groups_[place.first_group + place.predicted % together_];
    predict(group, place.stage, t, workspace);
    const bool last = place.stage + 1 == plan_.stages, ends_step = last && !has_mixer(params_);
    if (ends_step) {
      decode(group, t, distribution);
    } else if (last) {
      find_weights(group, t);
    }
    group.done.fetch_add(ends_step ? 2 : 1, std::memory_order_release);
    ++place.predicted;
  }

  // kMix: this thread has been given the turn.
  Next look(const Place& place) {
    const size_t step = plan_.stages + 1;
    const bool ended = place.predicted == pieces_.stride * together_;
    if (!ended) {
      const size_t group = place.first_group + place.predicted % together_;
      if (done(group) == place.predicted / together_ * step + place.stage) return Next::kPredict;
    }
    if (!has_mixer(params_)) return ended ? Next::kEnd : Next::kNothing;
    size_t turn = mixed_.load(std::memory_order_acquire);
    if (turn == pieces_.stride * groups_.size()) return Next::kEnd;
    const size_t predicted = turn / groups_.size() * step + plan_.stages;
    if (done(turn % groups_.size()) != predicted) return Next::kNothing;
    if (turns_.load(std::memory_order_relaxed) != turn) return Next::kNothing;
    return turns_.compare_exchange_strong(turn, turn + 1, std::memory_order_acq_rel)
               ? Next::kMix
               : Next::kNothing;
  }

  size_t done(size_t group) const { return groups_[group].done.load(std::memory_order_acquire); }

  // The lanes of a group with a byte at position t end here.
  size_t end(const Group& group, size_t t) const {
    return std::max(group.begin, std::min(group.end, pieces_.active(t)));
  }

  void predict(Group& group, size_t stage, size_t t, Workspace& workspace) {
    const size_t layers = model_.arch().n_layers, stop = end(group, t);
    Row rows[kTileRows];
    for (size_t first = group.begin; first < stop; first += kTileRows) {
      const size_t count = std::min(kTileRows, stop - first), place = first - group.begin;
      for (size_t i = 0; i < count; ++i) {
        const size_t lane = first + i;
        rows[i] = {static_cast<uint32_t>(lane), static_cast<uint32_t>(t), histories_[lane]};
      }
      forward_part(model_, {rows, count}, layers * stage / plan_.stages,
                   layers * (stage + 1) / plan_.stages,
                   group.x.data() + place * model_.arch().d_model, cache_, workspace,
                   group.logits.data() + place * kLogits);
    }
  }

  void find_weights(Group& group, size_t t) {
    for (size_t i = 0; i < (end(group, t) - group.begin) * kLogits; i += kLogits)
      logits_to_weights(group.logits.data() + i, kLogits, group.weights.data() + i);
  }

  void mix() {
    const size_t turn = mixed_.load(std::memory_order_relaxed), t = turn / groups_.size();
    Group& group = groups_[turn % groups_.size()];
    const size_t stop = end(group, t);
    for (size_t lane = group.begin; lane < stop; ++lane) {
      put(lane, t,
          mixer_[0].decode_byte(static_cast<int>(lane),
                                group.weights.data() + (lane - group.begin) * kLogits,
                                coders_[lane]));
    }
    if (t % 64 == 0) check_truncation(group.begin, stop);
    group.done.fetch_add(1, std::memory_order_release);
    mixed_.store(turn + 1, std::memory_order_release);
  }

  void decode(Group& group, size_t t, Distribution& distribution) {
    const size_t stop = end(group, t);
    for (size_t lane = group.begin; lane < stop; ++lane)
      put(lane, t,
          decode_byte(lane, group.logits.data() + (lane - group.begin) * kLogits, distribution));
    if (t % 64 == 0) check_truncation(group.begin, stop);
  }

  uint8_t decode_byte(size_t lane, const int32_t* logits, Distribution& distribution) {
    RangeDecoder& coder = coders_[lane];
    distribution.assign(RowKind::kLogits, logits, kLogits);
    const FoundSymbol found = distribution.find(coder.peek(kFreqBits));
    coder.consume(found.interval.lo, found.interval.freq, kFreqBits);
    return static_cast<uint8_t>(found.symbol);
  }

  void put(size_t lane, size_t t, uint8_t byte) {
    raw_[pieces_.begin(lane) + t] = byte;
    histories_[lane] = push_input(histories_[lane], byte);
  }

  // Damaged payloads often end early; there is no need to decode the rest of the frame then.
  void check_truncation(size_t begin, size_t end) const {
    for (size_t lane = begin; lane < end; ++lane) {
      if (coders_[lane].truncated()) throw cut_short(lane);
    }
  }

 public:
  void check_ends() const {
    for (size_t lane = 0; lane < coders_.size(); ++lane) {
      if (coders_[lane].end() != StreamEnd::kExact) {
        throw CorruptError("the payload of lane " + std::to_string(lane) + " is not the encoding " +
                           "of any " + std::to_string(pieces_.size(lane)) +
                           " bytes; the file is damaged");
      }
    }
  }

 private:
  const FrameParams& params_;
  const ExactModel& model_;
  const std::span<uint8_t> raw_;
  const Pieces pieces_;
  std::vector<RangeDecoder> coders_;  // (lanes)
  std::vector<uint32_t> histories_;   // (lanes)
  Cache cache_;
  const DecodingPlan plan_;
  const size_t together_;     // groups of a pipeline
  std::deque<Group> groups_;  // those of a pipeline lie together
  std::vector<Mixer> mixer_;  // one, with the mixer
  // step * groups + group: turns that a thread has been given, and those that are over.
  alignas(kCacheLine) std::atomic<size_t> turns_{0};
  std::atomic<size_t> mixed_{0};
};

}  // namespace

void check_lanes(size_t lanes) {
  if (lanes < 1 || lanes > kMaxLanes) throw std::invalid_argument("a frame has 1 to 65536 lanes");
}

size_t checked_threads(size_t threads) {
  if (threads < 1) throw std::invalid_argument("at least one thread is needed");
  return std::min(threads, kMaxThreads);
}

size_t most_encoding_threads(Method method) {
  switch (method) {
    case Method::kMixer:
      return 1;
    case Method::kNetworkMixer:
      return kMostPredicting;
    case Method::kNetwork:
      break;
  }
  return kMaxThreads;
}

size_t most_decoding_threads(const FrameParams& params, size_t lanes) {
  return decoding_plan(params, lanes, kMaxThreads).threads();
}

Payloads encode_frame(const FrameParams& params, std::span<const uint8_t> raw, size_t lanes,
                      Interrupt interrupt) {
  check(params, lanes);
  if (raw.empty()) return Payloads(lanes);
  if (params.method == Method::kMixer) {
    std::vector<uint8_t> code;
    if (params.profile == MixerProfile::kCode) {
      code.assign(raw.begin(), raw.end());
      x86_to_absolute(code);
      raw = code;
    }
    return encode_frame_mixer(raw, static_cast<int>(lanes), mixer_params(params), nullptr,
                              std::move(interrupt));
  }
  return FrameEncoder(params, raw, lanes).run(std::move(interrupt));
}

void decode_frame(const FrameParams& params, std::span<const std::span<const uint8_t>> payloads,
                  std::span<uint8_t> raw, Interrupt interrupt) {
  check(params, payloads.size());
  if (params.method == Method::kMixer) {
    if (!decode_frame_mixer(payloads, mixer_params(params), raw, nullptr, std::move(interrupt))) {
      throw CorruptError("a payload is not the encoding of any " + std::to_string(raw.size()) +
                         " bytes; the file is damaged");
    }
    if (params.profile == MixerProfile::kCode) x86_to_relative(raw);
    return;
  }
  FrameDecoder decoder(params, payloads, raw);
  decoder.run(std::move(interrupt));
  decoder.check_ends();
}

size_t frame_memory(const FrameParams& params, size_t raw_size, size_t lanes) {
  size_t bytes = lanes * 256 + raw_size;  // coders, their copies
  if (has_mixer(params)) bytes += mixer_memory(mixer_params(params), raw_size, lanes);
  if (params.model != nullptr) {
    // Threads work on no more rows than lanes, but that each rounds up: there are at most lanes of
    // them, or, as there are at most kMinGroup lanes in so small a frame, kMostStages.
    static_assert(kMostStages <= kMinGroup);
    const size_t x = params.model->arch().d_model * sizeof(int32_t);
    bytes += Cache::memory(*params.model, lanes) +
             (2 * lanes + kMostStages) * Workspace::memory(*params.model, 1) +
             lanes * (2 * kLogits * sizeof(int32_t) + x);
  }
  return bytes;
}

}  // namespace lmzip

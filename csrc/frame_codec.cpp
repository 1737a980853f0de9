// frame_codec.cpp: see frame_codec.h.
#include "frame_codec.h"

#include <algorithm>
#include <deque>
#include <stdexcept>
#include <string>

#include "distribution.h"
#include "engine.h"
#include "errors.h"
#include "lane_progress.h"
#include "range_coder.h"
#include "x86_targets.h"

namespace lmzip {
namespace {

constexpr size_t kBand = kTileRows;     // positions that are encoded at once
constexpr size_t kMinGroup = 4;         // lanes that are worth a thread when decoding
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

// Each thread decodes a group of neighboring lanes, at least kMinGroup of them: for fewer rows the
// products take as long as the weights take to come from the outer caches, so that two threads
// with two lanes each are as fast as one thread with four.  Without the mixer the groups have
// nothing in common.  With it they take turns, step by step and group by group, which is the order
// of the lockstep: while one group is in the mixer, the others are in the network.
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
        groups_(std::clamp<size_t>(params.threads, 1,
                                   most_decoding_threads(params.method, payloads.size()))) {
    if (has_mixer(params))
      mixer_.emplace_back(mixer_params(params), raw.size(), static_cast<int>(payloads.size()));
  }

  void run(Interrupt interrupt) {
    Job job(groups_, std::move(interrupt));
    run_threads(job, [&](size_t group) { decode_group(job, group); });
  }

 private:
  struct Buffers {
    Workspace workspace;
    AlignedArray<int32_t> logits;    // (lanes of the group, 256)
    AlignedArray<uint32_t> weights;  // the same of them, for the mixer
    Distribution distribution;

    Buffers(const ExactModel& model, size_t lanes)
        : workspace(model, std::min(lanes, kTileRows)),
          logits(lanes * kLogits),
          weights(lanes * kLogits) {}
  };

  void decode_group(Job& job, size_t group) {
    const size_t used = pieces_.active(0);  // lanes that are not empty
    const size_t begin = used * group / groups_, end = used * (group + 1) / groups_;
    Buffers buffers(model_, std::max<size_t>(end - begin, 1));
    for (size_t t = 0; t < pieces_.stride; ++t) {
      job.check(group);
      const size_t stop = std::min(end, pieces_.active(t));
      predict(t, begin, stop, buffers);
      if (has_mixer(params_)) {
        mix(job, group, t, begin, stop, buffers);
      } else {
        for (size_t lane = begin; lane < stop; ++lane)
          put(lane, t,
              decode_byte(lane, buffers.logits.data() + (lane - begin) * kLogits, buffers));
      }
      if (t % 64 == 0) check_truncation(begin, stop);
    }
  }

  void predict(size_t t, size_t begin, size_t end, Buffers& buffers) {
    Row rows[kTileRows];
    for (size_t first = begin; first < end; first += kTileRows) {
      const size_t count = std::min(kTileRows, end - first);
      for (size_t i = 0; i < count; ++i) {
        const size_t lane = first + i;
        rows[i] = {static_cast<uint32_t>(lane), static_cast<uint32_t>(t), histories_[lane]};
      }
      forward(model_, {rows, count}, cache_, buffers.workspace,
              buffers.logits.data() + (first - begin) * kLogits);
    }
  }

  // All that needs no turn is done before it.
  void mix(Job& job, size_t group, size_t t, size_t begin, size_t end, Buffers& buffers) {
    uint32_t* const weights = buffers.weights.data();
    for (size_t i = 0; i < end - begin; ++i)
      logits_to_weights(buffers.logits.data() + i * kLogits, kLogits, weights + i * kLogits);
    const size_t turn = t * groups_ + group;
    job.wait(group, [&] { return turn_.load(std::memory_order_acquire) == turn; });
    for (size_t lane = begin; lane < end; ++lane) {
      put(lane, t,
          mixer_[0].decode_byte(static_cast<int>(lane), weights + (lane - begin) * kLogits,
                                coders_[lane]));
    }
    turn_.store(turn + 1, std::memory_order_release);
  }

  uint8_t decode_byte(size_t lane, const int32_t* logits, Buffers& buffers) {
    RangeDecoder& coder = coders_[lane];
    buffers.distribution.assign(RowKind::kLogits, logits, kLogits);
    const FoundSymbol found = buffers.distribution.find(coder.peek(kFreqBits));
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
  const size_t groups_;
  std::vector<Mixer> mixer_;     // one, with the mixer
  std::atomic<size_t> turn_{0};  // step * groups + group
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

size_t most_decoding_threads(Method method, size_t lanes) {
  return method == Method::kMixer ? 1 : std::clamp<size_t>(lanes / kMinGroup, 1, kMaxThreads);
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
    // No more rows than lanes are worked on; threads round up, to twice as many at most.
    bytes += Cache::memory(*params.model, lanes) +
             2 * lanes * (Workspace::memory(*params.model, 1) + 2 * kLogits * sizeof(int32_t));
  }
  return bytes;
}

}  // namespace lmzip

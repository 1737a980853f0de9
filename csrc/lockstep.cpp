// lockstep.cpp: see lockstep.h.
#include "lockstep.h"

#include <algorithm>
#include <stdexcept>

#include "errors.h"
#include "frame_codec.h"

namespace lmzip {
namespace {

constexpr size_t kSymbols = 256;
constexpr size_t kLanesPerTask = 64;  // some microseconds of work
constexpr size_t kCheckEvery = 64;    // steps between looks for payloads that have ended

std::unique_ptr<Mixer> make_mixer(const LockstepMixer& mixer, size_t raw_size, size_t lanes) {
  if (mixer.table_bits == 0) return nullptr;
  return std::make_unique<Mixer>(MixerParams{mixer.table_bits, mixer.profile, true}, raw_size,
                                 static_cast<int>(lanes));
}

// work(begin, end) for runs of lanes.
template <typename Work>
void for_lanes(Crew& crew, size_t lanes, Work work) {
  crew.run((lanes + kLanesPerTask - 1) / kLanesPerTask, [&](size_t task) {
    work(task * kLanesPerTask, std::min((task + 1) * kLanesPerTask, lanes));
  });
}

// The weights of a row of distances: those of logits with the greatest at 0.
class Weights {
 public:
  const uint32_t* of(const uint16_t* distances) {
    for (size_t i = 0; i < kSymbols; ++i) logits_[i] = -int32_t{distances[i]};
    logits_to_weights(logits_, kSymbols, weights_);
    return weights_;
  }

 private:
  alignas(64) int32_t logits_[kSymbols];
  alignas(64) uint32_t weights_[kSymbols];
};

[[noreturn]] void throw_bad_interval(size_t lane, const Interval& interval) {
  throw std::runtime_error("lane " + std::to_string(lane) + ": [" + std::to_string(interval.lo) +
                           ", +" + std::to_string(interval.freq) +
                           ") cannot be the interval of this byte: a defect of the device or of "
                           "its engine, not of the file");
}

}  // namespace

// --- encoding ---

LockstepEncoder::LockstepEncoder(std::span<const Frame> frames, size_t threads)
    : crew_(checked_threads(threads)) {
  for (const Frame& frame : frames) {
    check_lanes(frame.lanes);
    frames_.push_back(
        {lanes_.size(), frame.lanes, make_mixer(frame.mixer, frame.raw.size(), frame.lanes)});
    for (size_t lane = 0; lane < frame.lanes; ++lane)
      lanes_.push_back({lane_piece(frame.raw, lane, frame.lanes), {}});
  }
}

void LockstepEncoder::take_intervals(const Interval* intervals, size_t count) {
  for_lanes(crew_, lanes_.size(), [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      Lane& lane = lanes_[i];
      const size_t stop = std::clamp(lane.raw.size(), position_, position_ + count) - position_;
      for (size_t t = 0; t < stop; ++t) {
        const Interval& interval = intervals[i * count + t];
        if (!interval.valid()) throw_bad_interval(i, interval);
        lane.coder.encode(interval.lo, interval.freq, kFreqBits);
      }
    }
  });
  position_ += count;
}

void LockstepEncoder::take_distances(const uint16_t* distances, size_t count) {
  crew_.run(frames_.size(), [&](size_t f) {
    FrameState& frame = frames_[f];
    Weights weights;
    for (size_t t = 0; t < count; ++t) {
      for (size_t i = 0; i < frame.lanes; ++i) {
        Lane& lane = lanes_[frame.first + i];
        if (position_ + t >= lane.raw.size()) break;  // so have all lanes behind it
        const uint16_t* row = distances + ((frame.first + i) * count + t) * kSymbols;
        frame.mixer->encode_byte(static_cast<int>(i), lane.raw[position_ + t], weights.of(row),
                                 lane.coder);
      }
    }
  });
  position_ += count;
}

std::vector<std::vector<std::vector<uint8_t>>> LockstepEncoder::finish() {
  std::vector<std::vector<std::vector<uint8_t>>> payloads;
  for (const FrameState& frame : frames_) {
    payloads.emplace_back();
    for (size_t i = 0; i < frame.lanes; ++i)
      payloads.back().push_back(lanes_[frame.first + i].coder.finish());
  }
  return payloads;
}

// --- decoding ---

LockstepDecoder::LockstepDecoder(std::span<const Frame> frames, size_t threads)
    : crew_(checked_threads(threads)) {
  for (const Frame& frame : frames) {
    const size_t lanes = frame.payloads.size();
    check_lanes(lanes);
    frames_.push_back({lanes_.size(), lanes, make_mixer(frame.mixer, frame.raw.size(), lanes)});
    for (size_t lane = 0; lane < lanes; ++lane)
      lanes_.push_back({lane_piece(frame.raw, lane, lanes), RangeDecoder(frame.payloads[lane])});
  }
}

void LockstepDecoder::slots(uint32_t* out) {
  for_lanes(crew_, lanes_.size(), [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i)
      out[i] = lanes_[i].active(position_) ? lanes_[i].coder.peek(kFreqBits) : 0;
  });
}

void LockstepDecoder::take_intervals(const uint8_t* bytes, const Interval* intervals) {
  for_lanes(crew_, lanes_.size(), [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      Lane& lane = lanes_[i];
      if (!lane.active(position_)) continue;
      const Interval interval = intervals[i];
      // An empty or foreign interval would leave the coder with an empty range, and the next peek()
      // would divide by it.
      if (!interval.valid() || !interval.contains(lane.coder.peek(kFreqBits)))
        throw_bad_interval(i, interval);
      lane.coder.consume(interval.lo, interval.freq, kFreqBits);
      lane.raw[position_] = bytes[i];
    }
  });
  end_step();
}

void LockstepDecoder::take_distances(const uint16_t* distances, uint8_t* bytes) {
  crew_.run(frames_.size(), [&](size_t f) {
    FrameState& frame = frames_[f];
    Weights weights;
    for (size_t i = 0; i < frame.lanes; ++i) {
      Lane& lane = lanes_[frame.first + i];
      uint8_t& byte = bytes[frame.first + i];
      byte = 0;
      if (!lane.active(position_)) continue;
      byte = frame.mixer->decode_byte(
          static_cast<int>(i), weights.of(distances + (frame.first + i) * kSymbols), lane.coder);
      lane.raw[position_] = byte;
    }
  });
  end_step();
}

// Damaged payloads often end early; there is no need to decode the rest of the frame then.
void LockstepDecoder::end_step() {
  if (++position_ % kCheckEvery != 0) return;
  for (const FrameState& frame : frames_) {
    const std::span lanes = std::span(lanes_).subspan(frame.first, frame.lanes);
    const bool cut = std::any_of(lanes.begin(), lanes.end(),
                                 [](const Lane& lane) { return lane.coder.truncated(); });
    if (!cut) continue;
    for (Lane& lane : lanes) lane.raw = {};  // check() knows them as cut short
  }
}

size_t LockstepDecoder::active() const {
  return static_cast<size_t>(std::count_if(
      lanes_.begin(), lanes_.end(), [&](const Lane& lane) { return lane.active(position_); }));
}

void LockstepDecoder::check(size_t frame) const {
  const FrameState& state = frames_.at(frame);
  for (size_t i = 0; i < state.lanes; ++i) {
    if (lanes_[state.first + i].coder.truncated()) throw cut_short(i);
  }
  for (size_t i = 0; i < state.lanes; ++i) {
    if (lanes_[state.first + i].coder.end() != StreamEnd::kExact) {
      throw CorruptError("the payload of lane " + std::to_string(i) +
                         " is not the encoding of what was decoded; the file is damaged");
    }
  }
}

}  // namespace lmzip

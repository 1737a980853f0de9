// lockstep.h: the coders, and mixers, of many frames, driven step by step by a network that runs
// elsewhere.
//
// In: for each step and lane what the network says of the next byte, in one of two forms:
//   interval   of a known byte, or of the byte found by its slot: 8 bytes; without the mixer
//   distances  of all 256 logits from the greatest, 16 bits each: for the mixer.  A distance of
//              31 octaves or more (31 * 1024) has the weight 0, so min(distance, 65535) says all.
// Out: the payloads that frame_codec.h makes of the same frames, byte for byte.
//
// The lanes of all frames are numbered through.  A frame is cut into lanes as in frame_codec.h; a
// lane that has ended takes no part in later steps, whatever is handed in for it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "aligned.h"
#include "crew.h"
#include "distribution.h"
#include "mixer.h"
#include "range_coder.h"

namespace lmzip {

// Of a frame.  The frames of one coder all have one, or none has.
struct LockstepMixer {
  int table_bits = 0;  // 0: no mixer
  MixerProfile profile = MixerProfile::kText;
};

class LockstepEncoder {
 public:
  struct Frame {
    std::span<const uint8_t> raw;  // outlives the encoder
    size_t lanes;                  // 1 .. kMaxLanes
    LockstepMixer mixer;
  };

  // Throws std::invalid_argument.
  LockstepEncoder(std::span<const Frame> frames, size_t threads);

  size_t lanes() const { return lanes_.size(); }

  // The next `count` steps, (lanes, count).  Throws std::runtime_error for what is no interval.
  void take_intervals(const Interval* intervals, size_t count);
  void take_distances(const uint16_t* distances, size_t count);  // (lanes, count, 256)

  // One payload for each lane of each frame.
  std::vector<std::vector<std::vector<uint8_t>>> finish();

 private:
  struct Lane {
    std::span<const uint8_t> raw;
    RangeEncoder coder;
  };
  struct FrameState {
    size_t first, lanes;  // of lanes_
    std::unique_ptr<Mixer> mixer;
  };

  Crew crew_;
  std::vector<Lane> lanes_;
  std::vector<FrameState> frames_;
  size_t position_ = 0;
};

class LockstepDecoder {
 public:
  struct Frame {
    std::span<const std::span<const uint8_t>> payloads;  // one a lane; outlive the decoder
    std::span<uint8_t> raw;                              // likewise
    LockstepMixer mixer;
  };

  LockstepDecoder(std::span<const Frame> frames, size_t threads);

  size_t lanes() const { return lanes_.size(); }

  // Where in [0, 2^30) the next byte of each lane lies; 0 for lanes that have ended.
  void slots(uint32_t* out);
  // One step: bytes and intervals that were found by the slots.  Throws std::runtime_error for an
  // interval that does not hold its slot.
  void take_intervals(const uint8_t* bytes, const Interval* intervals);
  // One step: (lanes, 256) -> the bytes (lanes), 0 for lanes that have ended.
  void take_distances(const uint16_t* distances, uint8_t* bytes);

  // Lanes that have not ended; those of a frame with a payload cut short end soon after that shows.
  size_t active() const;

  // Any payloads are safe.  Throws CorruptError if one of the frame's is not the encoding of what
  // was decoded from it; the other frames do not suffer.
  void check(size_t frame) const;

 private:
  struct Lane {
    std::span<uint8_t> raw;
    RangeDecoder coder;
    bool active(size_t position) const { return position < raw.size(); }
  };
  struct FrameState {
    size_t first, lanes;
    std::unique_ptr<Mixer> mixer;
  };
  void end_step();

  Crew crew_;
  std::vector<Lane> lanes_;
  std::vector<FrameState> frames_;
  size_t position_ = 0;
};

}  // namespace lmzip

// token_lockstep.h: the coders of many frames of tokens, driven step by step by a network that runs
// elsewhere: lockstep.h for docs/format.md, method 5.
//
// In: for each step and lane a row of logits, (vocabulary) int32, which is changed.  Out: the
// payloads that token_codec.h makes of the same frames, byte for byte.
//
// The lanes of all frames are numbered through.  A lane that has ended takes no part in later
// steps, whatever is handed in for it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "crew.h"
#include "token_frame.h"

namespace lmzip {

class TokenLockstepEncoder {
 public:
  using Frame = std::vector<std::vector<uint32_t>>;  // symbols of each lane, as in token_codec.h

  // Throws std::invalid_argument.
  TokenLockstepEncoder(const LlamaModel& model, std::vector<Frame> frames, size_t threads);

  size_t lanes() const { return lanes_.size(); }
  size_t steps() const;  // of the longest lane

  // What goes into the network at the next `count` steps, (lanes, count).
  void inputs(uint32_t* out, size_t count) const;
  // What comes out of it, (lanes, count, vocabulary): goes to the next steps.
  void take(int32_t* logits, size_t count);

  // After steps() steps.  Throws std::invalid_argument before.
  std::vector<Payloads> finish();

 private:
  const LlamaModel& model_;
  std::vector<Frame> symbols_;
  Crew crew_;
  std::vector<std::unique_ptr<TokenFrameEncoder>> frames_;
  std::vector<std::pair<TokenFrameEncoder*, size_t>> lanes_;  // frame, lane of it
  size_t position_ = 0;
};

class TokenLockstepDecoder {
 public:
  struct Frame {
    std::span<const std::span<const uint8_t>> payloads;  // one a lane; what they view outlives us
    std::span<uint8_t> raw;                              // likewise
  };

  // Throws std::invalid_argument.
  TokenLockstepDecoder(const LlamaModel& model, std::span<const Frame> frames, size_t threads);

  size_t lanes() const { return lanes_.size(); }

  // One step: logits (lanes, vocabulary) -> the tokens that go in next (lanes); the start token for
  // lanes that have ended.
  void take(int32_t* logits, uint32_t* tokens);

  // Lanes that have not ended.  A damaged frame ends soon after that shows.
  size_t active() const;

  // Any payloads are safe.  Throws CorruptError if one of the frame's is not the encoding of what
  // was decoded from it; the other frames do not suffer.
  void check(size_t frame) const;

 private:
  struct FrameState {
    TokenFrameDecoder decoder;
    size_t first;                       // of lanes_
    std::optional<CorruptError> error;  // ends the frame
  };
  struct Lane {
    size_t frame, lane;                 // lane of the frame
    std::optional<CorruptError> error;  // of the current step
  };
  bool active(const Lane& lane) const {
    const FrameState& frame = frames_[lane.frame];
    return !frame.error && frame.decoder.active(lane.lane);
  }
  void end_step(FrameState& frame);

  const LlamaModel& model_;
  Crew crew_;
  std::vector<FrameState> frames_;
  std::vector<Lane> lanes_;
  size_t position_ = 0;
};

}  // namespace lmzip

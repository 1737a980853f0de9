// token_lockstep.h: the coders of many frames of tokens, driven step by step by a network that runs
// elsewhere: lockstep.h for docs/format.md, method 5.
//
// Out: for each step and lane a question; in: the answer (token_answers.h).  What comes of it are
// the payloads that token_codec.h makes of the same frames, byte for byte.  An answer that no row
// has is a std::runtime_error, after which the coder is of no use.
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
  struct Frame {
    std::vector<uint32_t> symbols;  // as in token_codec.h
    size_t lanes;
  };

  // Throws std::invalid_argument.
  TokenLockstepEncoder(const LlamaModel& model, std::vector<Frame> frames, size_t threads);

  size_t lanes() const { return lanes_.size(); }
  size_t steps() const;  // of the longest lane

  // Of the next `count` steps, (lanes, count).
  void ask(RowQuestion* out, size_t count) const;
  // (lanes, count): goes to the next steps.
  void take(const RowAnswer* answers, size_t count);

  // After steps() steps.  Throws std::invalid_argument before.
  std::vector<Payloads> finish();

 private:
  const LlamaModel& model_;
  std::vector<Frame> given_;
  Crew crew_;
  std::vector<std::unique_ptr<TokenFrameEncoder>> frames_;
  std::vector<std::pair<TokenFrameEncoder*, size_t>> lanes_;  // frame, lane of it
  size_t position_ = 0;
};

class TokenLockstepDecoder {
 public:
  struct Frame {
    std::span<const std::span<const uint8_t>> payloads;  // one a lane; what they view outlives us
    std::span<uint8_t> raw;                              // likewise; written by finish()
  };

  // Throws std::invalid_argument.
  TokenLockstepDecoder(const LlamaModel& model, std::span<const Frame> frames, size_t threads);

  size_t lanes() const { return lanes_.size(); }

  // A step is these three, in order.  ask(): questions (lanes).  choose(): answers (lanes) -> slots
  // (lanes) that are to be searched among the rest, kNoToken where there is no need; returns how
  // many.  take(): what was found (lanes).  Throw std::invalid_argument in another order.
  void ask(RowQuestion* out);
  size_t choose(const RowAnswer* answers, uint32_t* slots);
  void take(const FoundToken* found);

  // Lanes that have not ended.  A damaged frame ends soon after that shows.
  size_t active() const;

  // Writes a frame's raw bytes.  Any payloads are safe.  Throws CorruptError if one of the frame's
  // is not the encoding of what was decoded from it; the other frames do not suffer.
  void finish(size_t frame) const;

 private:
  struct FrameState {
    std::span<uint8_t> raw;
    size_t first, n_lanes;                     // of lanes_
    std::optional<TokenFrameDecoder> decoder;  // none where an error was there at once
    std::optional<CorruptError> error;         // ends the frame
  };
  struct Lane {
    size_t frame, lane;                 // lane of the frame
    std::optional<CorruptError> error;  // of the current step
  };
  bool active(const Lane& lane) const {
    const FrameState& frame = frames_[lane.frame];
    return !frame.error && frame.decoder->active(lane.lane);
  }
  enum class Next { kAsk, kChoose, kTake };
  void expect(Next now, Next then);
  void end_step(FrameState& frame);

  const LlamaModel& model_;
  Crew crew_;
  Next next_ = Next::kAsk;
  std::vector<FrameState> frames_;
  std::vector<Lane> lanes_;
  size_t position_ = 0;
};

}  // namespace lmzip

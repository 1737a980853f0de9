// token_lockstep.cpp: see token_lockstep.h.
#include "token_lockstep.h"

#include <algorithm>
#include <array>
#include <functional>
#include <stdexcept>
#include <string>

namespace lmzip {
namespace {

constexpr size_t kCheckEvery = 64;  // steps between looks for payloads that have ended

// What is asked of a lane that has ended.
RowQuestion no_question(const LlamaModel& model) {
  return make_question(model.arch().start, kNoToken, std::array<uint32_t, 0>{}, std::identity{});
}

}  // namespace

// --- encoding ---

TokenLockstepEncoder::TokenLockstepEncoder(const LlamaModel& model, std::vector<Frame> frames,
                                           size_t threads)
    : model_(model),
      given_(std::move(frames)),
      crew_(checked_threads(threads)),
      frames_(given_.size()) {
  for (const Frame& frame : given_) check_lanes(frame.lanes);
  crew_.run(given_.size(), [&](size_t f) {  // all that is remembered is looked up here
    frames_[f] = std::make_unique<TokenFrameEncoder>(model_, given_[f].symbols, given_[f].lanes);
  });
  for (const auto& frame : frames_) {
    for (size_t lane = 0; lane < frame->lanes(); ++lane) lanes_.push_back({frame.get(), lane});
  }
}

size_t TokenLockstepEncoder::steps() const {
  size_t longest = 0;
  for (const auto& frame : frames_) longest = std::max(longest, frame->longest());
  return longest;
}

void TokenLockstepEncoder::ask(RowQuestion* out, size_t count) const {
  for (const auto& [frame, lane] : lanes_) {
    for (size_t t = position_; t < position_ + count; ++t)
      *out++ = t < frame->size(lane) ? frame->question(lane, t) : no_question(model_);
  }
}

void TokenLockstepEncoder::take(const RowAnswer* answers, size_t count) {
  crew_.run(lanes_.size(), [&](size_t i) {
    const auto& [frame, lane] = lanes_[i];
    const size_t end = std::min(position_ + count, frame->size(lane));
    const RowAnswer* answer = answers + i * count;
    for (size_t t = position_; t < end; ++t) frame->predict(lane, t, *answer++);
  });
  position_ += count;
}

std::vector<Payloads> TokenLockstepEncoder::finish() {
  if (position_ < steps()) {
    throw std::invalid_argument("answers of " + std::to_string(position_) + " of " +
                                std::to_string(steps()) + " steps were handed in");
  }
  std::vector<Payloads> payloads(frames_.size());
  crew_.run(frames_.size(), [&](size_t f) { payloads[f] = frames_[f]->finish(); });
  return payloads;
}

// --- decoding ---

TokenLockstepDecoder::TokenLockstepDecoder(const LlamaModel& model, std::span<const Frame> frames,
                                           size_t threads)
    : model_(model), crew_(checked_threads(threads)) {
  for (const Frame& frame : frames) {
    check_lanes(frame.payloads.size());
    FrameState state{frame.raw, lanes_.size(), frame.payloads.size(), {}, {}};
    for (size_t lane = 0; lane < state.n_lanes; ++lane)
      lanes_.push_back({frames_.size(), lane, {}});
    try {
      state.decoder.emplace(model, frame.payloads, frame.raw.size());
    } catch (const CorruptError& error) {
      state.error = error;
    }
    frames_.push_back(std::move(state));
  }
}

void TokenLockstepDecoder::expect(Next now, Next then) {
  if (next_ != now) throw std::invalid_argument("a step is ask, choose, take, in this order");
  next_ = then;
}

void TokenLockstepDecoder::ask(RowQuestion* out) {
  expect(Next::kAsk, Next::kChoose);
  crew_.run(lanes_.size(), [&](size_t i) {
    const Lane& lane = lanes_[i];
    out[i] = active(lane) ? frames_[lane.frame].decoder->question(lane.lane) : no_question(model_);
  });
}

size_t TokenLockstepDecoder::choose(const RowAnswer* answers, uint32_t* slots) {
  expect(Next::kChoose, Next::kTake);
  crew_.run(lanes_.size(), [&](size_t i) {
    const Lane& lane = lanes_[i];
    slots[i] = kNoToken;
    if (!active(lane)) return;
    const auto slot = frames_[lane.frame].decoder->choose(lane.lane, answers[i]);
    slots[i] = slot.value_or(kNoToken);
  });
  return lanes_.size() - static_cast<size_t>(std::count(slots, slots + lanes_.size(), kNoToken));
}

void TokenLockstepDecoder::take(const FoundToken* found) {
  expect(Next::kTake, Next::kAsk);
  crew_.run(lanes_.size(), [&](size_t i) {
    Lane& lane = lanes_[i];
    if (!active(lane)) return;
    TokenFrameDecoder& decoder = *frames_[lane.frame].decoder;
    try {
      decoder.decode(lane.lane, found[i]);
      if (position_ % kCheckEvery == 0) decoder.check_truncation(lane.lane);
    } catch (const CorruptError& error) {
      lane.error = error;
    }
  });
  crew_.run(frames_.size(), [&](size_t f) { end_step(frames_[f]); });
  ++position_;
}

void TokenLockstepDecoder::end_step(FrameState& frame) {
  for (size_t i = 0; i < frame.n_lanes && !frame.error; ++i)
    frame.error = lanes_[frame.first + i].error;
  if (frame.error) return;
  try {
    frame.decoder->end_step();
  } catch (const CorruptError& error) {
    frame.error = error;
  }
}

size_t TokenLockstepDecoder::active() const {
  return static_cast<size_t>(
      std::count_if(lanes_.begin(), lanes_.end(), [&](const Lane& lane) { return active(lane); }));
}

void TokenLockstepDecoder::finish(size_t frame) const {
  const FrameState& state = frames_.at(frame);
  if (state.error) throw CorruptError(*state.error);
  if (!state.decoder->finished()) throw std::invalid_argument("the frame has lanes left to decode");
  state.decoder->finish(state.raw);
}

}  // namespace lmzip

// token_frame.h: the symbols of one frame <-> payloads, given what a network says of each.
//
// What docs/format.md, method 5, lays down beside the network: candidates, escapes, coders.
// Whoever runs the network hands in rows of logits, of `vocabulary` numbers, which are changed
// (token_codec.cpp), or a device's answers about them (token_lockstep.cpp, token_answers.h).
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "distribution.h"
#include "errors.h"
#include "frame_codec.h"  // Payloads
#include "llama_model.h"
#include "range_coder.h"
#include "recall.h"
#include "token_answers.h"
#include "token_choice.h"

namespace lmzip {

// How n symbols are cut into lanes: alike, the first ones having one more where need be.
class TokenLanes {
 public:
  TokenLanes(size_t n, size_t lanes) : least_(n / lanes), more_(n % lanes) {}

  size_t begin(size_t lane) const { return lane * least_ + std::min(lane, more_); }
  size_t size(size_t lane) const { return least_ + (lane < more_ ? 1 : 0); }

 private:
  size_t least_, more_;
};

class TokenFrameEncoder {
 public:
  // The frame's symbols, which outlive the encoder, in 1 or more lanes.  Looks up all that is
  // remembered: it depends on tokens alone.  Throws std::invalid_argument for a symbol that stands
  // for no bytes.
  TokenFrameEncoder(const LlamaModel& model, std::span<const uint32_t> symbols, size_t lanes);

  size_t lanes() const { return lanes_.size(); }
  size_t size(size_t lane) const { return lanes_[lane].size(); }
  size_t longest() const { return lanes_[0].size(); }

  // What goes into the network at position t of a lane.
  uint32_t input(size_t lane, size_t t) const {
    return t == 0 ? model_.arch().start : token_of(lanes_[lane][t - 1]);
  }

  // What is asked of position t of a lane, t < size(lane), before it is predicted.
  RowQuestion question(size_t lane, size_t t) const;

  // What the network says of position t of a lane, t < size(lane): once for each, in any order and
  // on any thread.  Throws std::runtime_error for an answer that no row has.
  void predict(size_t lane, size_t t, int32_t* logits, Distribution& distribution);
  void predict(size_t lane, size_t t, const RowAnswer& answer);

  // After all positions have been predicted.
  Payloads finish();

 private:
  struct Record {
    std::vector<uint32_t> packed;  // candidates; before predict() those that are remembered
    int32_t log_p_rest = 0;
    Interval interval{};  // of a token that is no candidate, among those that are none
  };

  // What stands before a symbol's successor: its token, or the escape.
  uint32_t token_of(uint32_t symbol) const {
    return symbol < model_.arch().vocabulary ? symbol : model_.arch().escape;
  }
  void check_symbols() const;
  void look_up();
  static Choice recalled(const Record& record);
  // The choice is complete; whether the token is none of its candidates.
  static bool record_choice(const Choice& choice, uint32_t token, Record& record);
  void code_symbol(const Choice& choice, const Interval& among_rest, uint32_t symbol,
                   ScoredChoice& scored, RangeEncoder& coder) const;

  const LlamaModel& model_;
  const size_t size_;  // symbols
  std::vector<std::span<const uint32_t>> lanes_;
  TokenChoice chooser_;
  std::vector<std::vector<Record>> records_;  // (lanes, positions)
};

class TokenFrameDecoder {
 public:
  // One payload for each lane, at least one.  Payloads outlive the decoder.  Throws CorruptError
  // where they do not say how many symbols raw_size bytes are.
  TokenFrameDecoder(const LlamaModel& model, std::span<const std::span<const uint8_t>> payloads,
                    size_t raw_size);

  size_t lanes() const { return lanes_.size(); }
  size_t longest() const { return longest_; }  // symbols
  bool active(size_t lane) const { return lanes_[lane].left != 0; }
  bool finished() const;  // no lane is active

  // A step: first each active lane, on any thread, then the end, on one.  decode() appends the next
  // symbol's bytes and returns its token.  Both throw CorruptError for what cannot be there.
  uint32_t decode(size_t lane, int32_t* logits, Distribution& distribution);
  void end_step();

  // The same as decode() in three calls, for a device's answers.  question(): what is asked of the
  // next step, of an active lane.  choose(): the slot, less than 2^30, that is to be searched among
  // the rest, if there is need.  decode(): given what was found, which without need is ignored.
  // The last two throw std::runtime_error for what no row has.
  RowQuestion question(size_t lane);
  std::optional<uint32_t> choose(size_t lane, const RowAnswer& answer);
  uint32_t decode(size_t lane, const FoundToken& found);

  // Throw CorruptError for a lane whose payload has ended before its symbols; and, once no lane is
  // active, for one that is not the encoding of what was decoded from it.  finish() writes the raw
  // bytes, raw_size of them.
  void check_truncation(size_t lane) const;
  void finish(std::span<uint8_t> raw) const;

 private:
  struct Lane {
    RangeDecoder coder;
    size_t left = 0;  // symbols that are still to be decoded
    std::vector<uint8_t> bytes;

    // Of the current step.
    bool stepped = false;
    Choice choice;
    ScoredChoice scored;
    bool chosen = false;  // a candidate
    uint32_t token = 0;   // at first the start
  };

  // Once the choice is complete; once the token is known.
  void choose(Lane& lane);
  uint32_t put_token(size_t lane);
  void check_decoded(bool fits) const;

  const LlamaModel& model_;
  const size_t raw_size_;
  size_t longest_ = 0;
  size_t decoded_ = 0;  // bytes, at the end of a step
  std::vector<Lane> lanes_;
  Recall recall_;
  TokenChoice chooser_;
};

}  // namespace lmzip

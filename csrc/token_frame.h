// token_frame.h: the symbols of one frame <-> payloads, given what a network says of each.
//
// What docs/format.md, method 5, lays down beside the network: guesses, exclusion, escapes, coders.
// Whoever runs the network (token_codec.cpp, token_lockstep.cpp) hands in rows of logits, of
// `vocabulary` numbers; they are changed.  Or rows stay where they are (a GPU), and it answers what
// is asked of them: the numbers of a Distribution.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "distribution.h"
#include "errors.h"
#include "frame_codec.h"  // Payloads
#include "llama_model.h"
#include "range_coder.h"
#include "recall.h"

namespace lmzip {

inline constexpr uint32_t kNoToken = ~uint32_t{0};  // no guess
inline constexpr uint32_t kNoSlot = ~uint32_t{0};   // nothing to be found

// What is asked of a row of logits when encoding.
struct TokenAnswer {
  uint32_t guess_freq;  // of the guess, in the row as it is; any number without a guess
  Interval interval;    // of the token, in the row without the guess; if that is right, anything
};

class TokenFrameEncoder {
 public:
  struct Question {
    uint32_t guess;  // or kNoToken
    uint32_t token;
  };

  // One row of symbols for each lane; outlives the encoder.  Makes all guesses: they depend on
  // tokens alone.  Throws std::invalid_argument for a symbol that stands for no bytes.
  TokenFrameEncoder(const LlamaModel& model, std::span<const std::vector<uint32_t>> lanes);

  size_t lanes() const { return lanes_.size(); }
  size_t size(size_t lane) const { return lanes_[lane].size(); }
  size_t longest() const { return longest_; }

  // What goes into the network at position t of a lane.
  uint32_t input(size_t lane, size_t t) const {
    return t == 0 ? model_.arch().start : token_of(lanes_[lane][t - 1]);
  }

  // What the network says of position t of a lane, t < size(lane): once for each, in any order and
  // on any thread.
  void predict(size_t lane, size_t t, int32_t* logits, Distribution& distribution);

  // predict() in two parts, for rows that are elsewhere.  answer() throws std::invalid_argument for
  // what is no interval.
  Question question(size_t lane, size_t t) const;
  void answer(size_t lane, size_t t, const TokenAnswer& answer);

  // After all positions have been predicted.
  Payloads finish();

 private:
  struct Record {
    Recall::Guess guess;
    uint32_t p16;       // of the guess
    Interval interval;  // of the token, the guess excluded if it was wrong
  };

  // What stands before a symbol's successor: its token, or the escape.
  uint32_t token_of(uint32_t symbol) const {
    return symbol < model_.arch().vocabulary ? symbol : model_.arch().escape;
  }
  void check_symbols() const;
  void make_guesses();
  void code_symbol(const Record& record, uint32_t symbol, RangeEncoder& coder) const;

  const LlamaModel& model_;
  const std::span<const std::vector<uint32_t>> lanes_;
  Recall recall_;
  std::vector<std::vector<Record>> records_;  // (lanes, positions)
  size_t longest_ = 0;
};

class TokenFrameDecoder {
 public:
  // One payload for each lane, at least one.  Payloads and raw outlive the decoder.
  TokenFrameDecoder(const LlamaModel& model, std::span<const std::span<const uint8_t>> payloads,
                    std::span<uint8_t> raw);

  size_t lanes() const { return coders_.size(); }
  bool active(size_t lane) const { return !rest_[lane].empty(); }
  bool finished() const;  // no lane is active

  // A step: first each active lane, on any thread, then the end, on one.  decode() puts the next
  // symbol's bytes and returns its token; throws CorruptError for one that cannot be there.
  uint32_t decode(size_t lane, int32_t* logits, Distribution& distribution);
  void end_step();

  // decode() in parts, for rows that are elsewhere.  First the guess, or kNoToken.  With its freq
  // in the row as it is (anything without a guess): the slot to be found in the row without the
  // guess, or kNoSlot.  Then the last part: what was found, or take_known() where there was no
  // slot. take_found() throws std::invalid_argument for what is no interval.
  uint32_t begin_step(size_t lane);
  uint32_t decide(size_t lane, uint32_t guess_freq);
  uint32_t take_known(size_t lane);
  uint32_t take_found(size_t lane, const FoundSymbol& found);

  // Throw CorruptError for a lane whose payload has ended before its bytes; and, once all lanes are
  // complete, for one that is not the encoding of what was decoded from it.
  void check_truncation(size_t lane) const;
  void check_end() const;

 private:
  // What a lane has decoded in the current step.
  struct Step {
    bool active;
    Recall::Guess guess;
    uint32_t p16;
    uint32_t token;
  };

  uint32_t put_token(size_t lane, uint32_t token);
  void put(size_t lane, std::span<const uint8_t> bytes);

  const LlamaModel& model_;
  std::vector<RangeDecoder> coders_;      // (lanes)
  std::vector<std::span<uint8_t>> rest_;  // (lanes): bytes that are still to be decoded
  Recall recall_;
  std::vector<Step> steps_;  // (lanes)
};

}  // namespace lmzip

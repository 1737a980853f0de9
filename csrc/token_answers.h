// token_answers.h: what a coder of tokens has to know of a row of logits that lies elsewhere, on a
// device: instead of 4 bytes a token of the vocabulary, two records of fixed size.
//
// A question goes with the tokens that enter the network, an answer comes back.  Weights, W and
// intervals are those of docs/coder.md; *candidates* those of docs/format.md, method 5: what is
// recalled, and what weighs W / 512 or more.  *Among the rest* means: after the logits of all
// candidates were set to -2^20.  A coder that finds its token to be no candidate when decoding asks
// once more, for the token that holds a slot among the rest (FoundToken).
//
// lmzip.token_answers is the same in Python; 32-bit words in this order.
#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "distribution.h"
#include "recall.h"

namespace lmzip {

inline constexpr uint32_t kNoToken = ~uint32_t{0};
inline constexpr int kLikelyShift = 9;  // 1/512
inline constexpr size_t kMaxLikely = size_t{1} << kLikelyShift;

struct RowQuestion {
  uint32_t input;   // the token that goes into the network
  uint32_t target;  // the token whose interval among the rest is asked for, or kNoToken
  std::array<uint32_t, Recall::kMost> recalled;  // tokens; unused places have kNoToken
};

// Recalled are token_of() each of `found`, kMost at most.
template <typename Found, typename TokenOf>
RowQuestion make_question(uint32_t input, uint32_t target, const Found& found, TokenOf token_of) {
  RowQuestion question{input, target, {}};
  std::fill(std::transform(found.begin(), found.end(), question.recalled.begin(), token_of),
            question.recalled.end(), kNoToken);
  return question;
}

struct RowAnswer {
  struct Likely {
    uint32_t token;
    uint32_t below;  // how far its logit lies below the greatest
  };
  uint32_t sum_low, sum_high;  // W
  uint32_t likely_count;       // tokens of W / 512 or more
  Interval target;             // among the rest; freq 0 if it is a candidate, or is not asked for
  std::array<uint32_t, Recall::kMost> recalled;  // how far below the greatest; else 0
  std::array<Likely, kMaxLikely> likely;         // by token; beyond likely_count anything

  uint64_t sum() const { return uint64_t{sum_high} << 32 | sum_low; }
};

struct FoundToken {
  uint32_t token;
  Interval interval;
};

inline constexpr size_t kQuestionWords = sizeof(RowQuestion) / 4;  // 22
inline constexpr size_t kAnswerWords = sizeof(RowAnswer) / 4;      // 1049
inline constexpr size_t kFoundWords = sizeof(FoundToken) / 4;      // 3
static_assert(std::is_standard_layout_v<RowQuestion> && std::is_standard_layout_v<RowAnswer>);
static_assert(kQuestionWords == 2 + Recall::kMost && kFoundWords == 3);
static_assert(kAnswerWords == 5 + Recall::kMost + 2 * kMaxLikely);

}  // namespace lmzip

// token_choice.h: one of a few tokens that are likely, or none of them: a distribution learned over
// the frame, on top of what the network says.
//
// The candidates are what followed the last tokens before (recall.h) and what the network gives
// 1/512 or more.  Each has a score, log2 of a likelihood in 1/1024 like a logit: what the network
// says, and what was learned to be added for tokens that were seen so often, for how likely they
// are, and for this very token.  One more score stands for all other tokens.  After each step all
// of it moves along the gradient of the code length.
//
// A choice is made of a row of logits in any order and on any thread; scores are those at the
// beginning of a step, from which the lanes are learned in order.  Integers only.  Specified in
// docs/format.md, method 5.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "distribution.h"
#include "recall.h"
#include "token_answers.h"

namespace lmzip {

struct Choice {
  std::vector<Candidate> candidates;  // first those remembered, then others by token
  int32_t log_p_rest = 0;             // of all other tokens together
  bool recalled = false;              // whether any is remembered

  // candidates.size(): none of them
  size_t find(uint32_t token) const;
};

// The intervals of the candidates' scores, the last one that of all other tokens.
class ScoredChoice {
 public:
  Interval interval(size_t i) const {
    return {cumulative_[i], cumulative_[i + 1] - cumulative_[i]};
  }
  // slot < 2^30
  size_t find(uint32_t slot) const;

 private:
  friend class TokenChoice;
  std::vector<int32_t> scores_;
  std::vector<uint32_t> cumulative_;
  Distribution distribution_;
};

// A candidate in 32 bits, without what has been seen of it.
uint32_t pack(const Candidate& candidate);
uint32_t packed_token(uint32_t packed);
int32_t packed_log_p(uint32_t packed);

// Completes what recall has found, given the row of logits and its distribution; or what a device
// answers of them, having been asked for what recall has found.  Throws std::runtime_error for an
// answer that no row has.
void complete_choice(const int32_t* logits, const Distribution& distribution, Choice& choice);
void complete_choice(const RowAnswer& answer, size_t vocabulary, Choice& choice);

class TokenChoice {
 public:
  explicit TokenChoice(size_t vocabulary);

  void score(const Choice& choice, ScoredChoice& out) const;

  // After the step: which token it was.
  void learn(const Choice& choice, const ScoredChoice& scored, uint32_t token);

  static size_t memory(size_t vocabulary) { return vocabulary * sizeof(Weight); }

 private:
  static constexpr size_t kKnots = 3;  // at a log2 probability of 0, -8, -16
  static constexpr int kKnotBits = 13;
  static constexpr size_t kPlain = Candidate::kOrders * Recall::kStates;  // row of kinds_
  static constexpr size_t kRests = 32;

  struct Weight {
    int32_t value = 0;  // log2 in 1/65536
    uint32_t seen = 0;  // sum of the gradient's magnitudes, 16 fractional bits, limited
  };
  using Knots = std::array<Weight, kKnots>;
  struct At {
    size_t knot;
    int32_t weight;  // of the knot after it, of 2^kKnotBits
  };

  static At at(int32_t log_p);
  static int64_t value(const Knots& knots, const At& at);
  static void learn(Knots& knots, const At& at, int32_t gradient);
  static void learn(Weight& weight, int32_t gradient);
  static void learn_bias(Weight& weight, int32_t gradient);
  static void move(Weight& weight, int32_t gradient, int rate_bits, uint32_t limit);
  static size_t rest_of(const Choice& choice);

  // Calls f with the row of each kind a candidate is of.
  template <typename F>
  static void for_kinds(const Choice& choice, const Candidate& candidate, F&& f) {
    bool seen = false;
    for (size_t order = 0; order < Candidate::kOrders; ++order) {
      if (candidate.seen[order] == 0) continue;
      seen = true;
      f(order * Recall::kStates + candidate.seen[order] - 1);
    }
    f(kPlain + (seen ? 2 : choice.recalled ? 1 : 0));
  }

  std::vector<Weight> bias_;               // (vocabulary)
  std::array<Knots, kPlain + 3> kinds_{};  // (orders, states), and three that depend on no order
  std::array<Weight, kRests> rests_{};
};

}  // namespace lmzip

// token_choice.cpp: see token_choice.h.
#include "token_choice.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>

#include "choice_start.h"
#include "llama_stages.h"
#include "logistic.h"
#include "row_kernels.h"

namespace lmzip {
namespace {

constexpr int32_t kLogPUnit = 8;                           // of log_p of candidates
constexpr int32_t kLeast = -20 * (1 << kLogitFracBits);    // the same
constexpr int32_t kTopBits = kExp2Bits << kLogitFracBits;  // log2 of the greatest logit's weight
constexpr int kOneBits = 16;                               // a gradient of 1
constexpr int32_t kLeastGradient = 64;
constexpr uint32_t kStartSeen = 10 << kOneBits;
constexpr int kStartShift = 12;          // 1/16 bit in 1/65536
constexpr int32_t kMaxWeight = 1 << 21;  // 32 bits

// log2 in 1/1024 of 0 < n < 2^63, of its upper 24 bits.
int32_t log2_of(uint64_t n) {
  const int shift = std::max(0, static_cast<int>(std::bit_width(n)) - 24);
  return ((shift << kLogBits) + bent_log2(static_cast<uint32_t>(n >> shift))) >>
         (kLogBits - kLogitFracBits);
}

// Adds a likely token, unless it is one of the first `recalled`; below: see weigh().
void add_likely(uint32_t token, int32_t below, size_t recalled, Choice& choice) {
  const auto end = choice.candidates.begin() + static_cast<ptrdiff_t>(recalled);
  if (std::none_of(choice.candidates.begin(), end,
                   [=](const Candidate& c) { return c.token == token; }))
    choice.candidates.push_back({token, below});
}

// log_p of all candidates and of the rest.  In: log_p is how far a logit lies below the greatest.
// Returns whether the candidates weigh no more than `sum`.
bool weigh(uint64_t sum, Choice& choice) {
  const int32_t log_sum = log2_of(sum);
  uint64_t weight = 0;
  for (Candidate& candidate : choice.candidates) {
    const int32_t below = candidate.log_p;
    candidate.log_p = std::clamp((kTopBits - below - log_sum) & -kLogPUnit, kLeast, 0);
    weight += logit_weight(static_cast<uint32_t>(below));
  }
  if (weight > sum) return false;
  choice.log_p_rest = log2_of(std::max<uint64_t>(sum - weight, 1)) - log_sum;
  return true;
}

// A device is not the file: nothing that a file says leads here.
[[noreturn]] void throw_bad_answer(const char* what) {
  throw std::runtime_error(std::string("a row of logits cannot have ") + what +
                           ": a defect of the device or of its engine, not of the file");
}

}  // namespace

size_t Choice::find(uint32_t token) const {
  return static_cast<size_t>(std::find_if(candidates.begin(), candidates.end(),
                                          [=](const Candidate& c) { return c.token == token; }) -
                             candidates.begin());
}

size_t ScoredChoice::find(uint32_t slot) const {
  return static_cast<size_t>(std::upper_bound(cumulative_.begin(), cumulative_.end(), slot) -
                             cumulative_.begin()) -
         1;
}

static_assert(-kLeast / kLogPUnit < 1 << 12 && kMaxSymbols <= size_t{1} << 20);

uint32_t pack(const Candidate& candidate) {
  return candidate.token << 12 | static_cast<uint32_t>(-candidate.log_p / kLogPUnit);
}

uint32_t packed_token(uint32_t packed) { return packed >> 12; }
int32_t packed_log_p(uint32_t packed) { return -static_cast<int32_t>(packed & 4095) * kLogPUnit; }

void complete_choice(const int32_t* logits, const Distribution& distribution, Choice& choice) {
  const size_t recalled = choice.candidates.size();
  choice.recalled = recalled > 0;
  const int32_t top = distribution.top_logit();
  for (Candidate& candidate : choice.candidates) candidate.log_p = top - logits[candidate.token];
  distribution.for_likely(kLikelyShift, [&](size_t symbol) {
    add_likely(static_cast<uint32_t>(symbol), top - logits[symbol], recalled, choice);
  });
  weigh(distribution.sum(), choice);
}

void complete_choice(const RowAnswer& answer, size_t vocabulary, Choice& choice) {
  const size_t recalled = choice.candidates.size();
  choice.recalled = recalled > 0;
  const auto checked = [](uint32_t below) {
    if (below > 2 * kLlamaLogitMax) throw_bad_answer("such a logit");
    return static_cast<int32_t>(below);
  };
  const uint64_t sum = answer.sum();
  if (sum < kFreqTotal || sum > uint64_t{vocabulary} << kExp2Bits) throw_bad_answer("such a sum");
  if (answer.likely_count > kMaxLikely) throw_bad_answer("so many likely tokens");
  for (size_t i = 0; i < recalled; ++i) choice.candidates[i].log_p = checked(answer.recalled[i]);
  size_t next = 0;
  for (size_t i = 0; i < answer.likely_count; ++i) {
    const auto& [token, below] = answer.likely[i];
    if (token < next || token >= vocabulary) throw_bad_answer("such a likely token");
    next = size_t{token} + 1;
    add_likely(token, checked(below), recalled, choice);
  }
  if (!weigh(sum, choice)) throw_bad_answer("candidates that weigh more than all tokens");
}

TokenChoice::TokenChoice(size_t vocabulary) : bias_(vocabulary) {
  static_assert(std::size(kKindStart) == (kPlain + 3) * kKnots);
  static_assert(std::size(kRestStart) == kRests);
  for (size_t i = 0; i < std::size(kKindStart); ++i)
    kinds_[i / kKnots][i % kKnots] = {kKindStart[i] * (1 << kStartShift), kStartSeen};
  for (size_t i = 0; i < kRests; ++i) rests_[i] = {kRestStart[i] * (1 << kStartShift), kStartSeen};
}

TokenChoice::At TokenChoice::at(int32_t log_p) {
  const int32_t x = std::clamp(-log_p, 0, (2 << kKnotBits) - 1);
  return {static_cast<size_t>(x >> kKnotBits), x & ((1 << kKnotBits) - 1)};
}

int64_t TokenChoice::value(const Knots& knots, const At& at) {
  const int64_t low = knots[at.knot].value, high = knots[at.knot + 1].value;
  return (low * ((1 << kKnotBits) - at.weight) + high * at.weight) >> kKnotBits;
}

size_t TokenChoice::rest_of(const Choice& choice) {
  const int32_t bits = std::clamp(-choice.log_p_rest >> kLogitFracBits, 0, 15);
  return static_cast<size_t>(bits) + (choice.recalled ? 16 : 0);
}

void TokenChoice::score(const Choice& choice, ScoredChoice& out) const {
  constexpr int kShift = kOneBits - kLogitFracBits;
  std::vector<int32_t>& scores = out.scores_;
  scores.clear();
  for (const Candidate& candidate : choice.candidates) {
    const At place = at(candidate.log_p);
    int64_t sum = bias_[candidate.token].value;
    for_kinds(choice, candidate, [&](size_t kind) { sum += value(kinds_[kind], place); });
    scores.push_back(candidate.log_p + static_cast<int32_t>(sum >> kShift));
  }
  scores.push_back(choice.log_p_rest + (rests_[rest_of(choice)].value >> kShift));
  out.distribution_.assign(RowKind::kLogits, scores.data(), scores.size());
  out.cumulative_.resize(scores.size() + 1);
  out.distribution_.cumulative(out.cumulative_.data());
}

void TokenChoice::move(Weight& weight, int32_t gradient, int rate_bits, uint32_t limit) {
  weight.seen =
      std::min(weight.seen + static_cast<uint32_t>(std::abs(gradient)), limit << kOneBits);
  const int64_t step = int64_t{gradient} * (int64_t{1} << (kOneBits + rate_bits)) /
                       ((int64_t{1} << kOneBits) + weight.seen);
  weight.value =
      static_cast<int32_t>(std::clamp<int64_t>(weight.value + step, -kMaxWeight, kMaxWeight));
}

// 2 / (1 + seen), at last 1/50; of a bias 1 / (1 + seen), and 1/20.
void TokenChoice::learn(Weight& weight, int32_t gradient) { move(weight, gradient, 1, 99); }
void TokenChoice::learn_bias(Weight& weight, int32_t gradient) { move(weight, gradient, 0, 19); }

void TokenChoice::learn(Knots& knots, const At& at, int32_t gradient) {
  learn(knots[at.knot], (gradient * ((1 << kKnotBits) - at.weight)) >> kKnotBits);
  learn(knots[at.knot + 1], (gradient * at.weight) >> kKnotBits);
}

void TokenChoice::learn(const Choice& choice, const ScoredChoice& scored, uint32_t token) {
  const size_t count = choice.candidates.size(), right = choice.find(token);
  const auto gradient = [&](size_t i) {
    const uint32_t p = scored.interval(i).freq >> (kFreqBits - kOneBits);
    return (i == right ? 1 << kOneBits : 0) - static_cast<int32_t>(p);
  };
  for (size_t i = 0; i < count; ++i) {
    const Candidate& candidate = choice.candidates[i];
    const int32_t g = gradient(i);
    if (std::abs(g) < kLeastGradient) continue;
    const At place = at(candidate.log_p);
    for_kinds(choice, candidate, [&](size_t kind) { learn(kinds_[kind], place, g); });
    learn_bias(bias_[candidate.token], g);
  }
  learn(rests_[rest_of(choice)], gradient(count));
  if (right == count) learn_bias(bias_[token], 1 << kOneBits);
}

}  // namespace lmzip

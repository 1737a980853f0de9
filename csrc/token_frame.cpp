// token_frame.cpp: see token_frame.h.
#include "token_frame.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace lmzip {
namespace {

constexpr int kByteBits = 8;    // a raw byte: one of 256, all alike
constexpr int kGuessBits = 16;  // whether a guess is right
constexpr uint32_t kGuessTotal = 1 << kGuessBits;

// The model's probability of a guess, in 1..65535 of 2^16.
uint32_t probability(uint32_t freq) {
  return std::clamp<uint32_t>(freq >> (kFreqBits - kGuessBits), 1, kGuessTotal - 1);
}

// The row's distribution without a guess that was wrong.
void exclude(Distribution& distribution, const Recall::Guess& guess, int32_t* row, size_t size) {
  row[guess.token] = -kLlamaLogitMax;
  distribution.assign(RowKind::kLogits, row, size);
}

// Of a device that does not work; a coder would divide by 0.
void check_interval(const Interval& interval) {
  if (interval.freq == 0 || uint64_t{interval.lo} + interval.freq > kFreqTotal)
    throw std::invalid_argument("a token's interval is " + std::to_string(interval.lo) + " + " +
                                std::to_string(interval.freq) + ", not within 2^30");
}

CorruptError corrupt(size_t lane, const char* what) {
  return CorruptError("the payload of lane " + std::to_string(lane) + " " + what +
                      "; the file is damaged");
}

}  // namespace

// --- encoding ---

TokenFrameEncoder::TokenFrameEncoder(const LlamaModel& model,
                                     std::span<const std::vector<uint32_t>> lanes)
    : model_(model), lanes_(lanes), recall_(lanes.size()), records_(lanes.size()) {
  check_symbols();
  for (size_t lane = 0; lane < lanes.size(); ++lane) {
    longest_ = std::max(longest_, lanes[lane].size());
    records_[lane].resize(lanes[lane].size());
  }
  make_guesses();
}

void TokenFrameEncoder::check_symbols() const {
  const size_t vocabulary = model_.arch().vocabulary;
  for (const std::vector<uint32_t>& lane : lanes_) {
    for (const uint32_t s : lane) {
      if (s < vocabulary ? model_.token(s).empty() : s >= vocabulary + 256)
        throw std::invalid_argument("symbol " + std::to_string(s) + " stands for no bytes");
    }
  }
}

void TokenFrameEncoder::make_guesses() {
  for (size_t t = 0; t < longest_; ++t) {
    for (size_t lane = 0; lane < lanes_.size(); ++lane) {
      if (t < lanes_[lane].size()) records_[lane][t].guess = recall_.guess(lane);
    }
    for (size_t lane = 0; lane < lanes_.size(); ++lane) {
      if (t < lanes_[lane].size()) recall_.remember(lane, token_of(lanes_[lane][t]));
    }
  }
}

void TokenFrameEncoder::predict(size_t lane, size_t t, int32_t* logits,
                                Distribution& distribution) {
  const size_t vocabulary = model_.arch().vocabulary;
  Record& record = records_[lane][t];
  const uint32_t token = token_of(lanes_[lane][t]);
  distribution.assign(RowKind::kLogits, logits, vocabulary);
  if (record.guess.context != 0) {
    record.p16 = probability(distribution.interval(record.guess.token).freq);
    if (record.guess.token == token) return;
    exclude(distribution, record.guess, logits, vocabulary);
  }
  record.interval = distribution.interval(token);
}

TokenFrameEncoder::Question TokenFrameEncoder::question(size_t lane, size_t t) const {
  const Recall::Guess& guess = records_[lane][t].guess;
  return {guess.context != 0 ? guess.token : kNoToken, token_of(lanes_[lane][t])};
}

void TokenFrameEncoder::answer(size_t lane, size_t t, const TokenAnswer& answer) {
  Record& record = records_[lane][t];
  record.p16 = probability(answer.guess_freq);
  record.interval = answer.interval;
  const bool known = record.guess.context != 0 && record.guess.token == token_of(lanes_[lane][t]);
  if (!known) check_interval(answer.interval);
}

Payloads TokenFrameEncoder::finish() {
  std::vector<RangeEncoder> coders(lanes_.size());
  for (size_t t = 0; t < longest_; ++t) {
    for (size_t lane = 0; lane < lanes_.size(); ++lane) {
      if (t < lanes_[lane].size()) code_symbol(records_[lane][t], lanes_[lane][t], coders[lane]);
    }
    for (size_t lane = 0; lane < lanes_.size(); ++lane) {
      if (t >= lanes_[lane].size()) continue;
      const Record& record = records_[lane][t];
      if (record.guess.context != 0) {
        recall_.adapt(record.guess, record.p16, record.guess.token == token_of(lanes_[lane][t]));
      }
    }
  }
  Payloads payloads;
  for (RangeEncoder& coder : coders) payloads.push_back(coder.finish());
  return payloads;
}

void TokenFrameEncoder::code_symbol(const Record& record, uint32_t symbol,
                                    RangeEncoder& coder) const {
  bool known = false;
  if (record.guess.context != 0) {
    const uint32_t p = recall_.refine(record.guess, record.p16);
    known = record.guess.token == token_of(symbol);
    coder.encode(known ? 0 : p, known ? p : kGuessTotal - p, kGuessBits);
  }
  if (!known) coder.encode(record.interval.lo, record.interval.freq, kFreqBits);
  const size_t vocabulary = model_.arch().vocabulary;
  if (symbol >= vocabulary) coder.encode(static_cast<uint32_t>(symbol - vocabulary), 1, kByteBits);
}

// --- decoding ---

TokenFrameDecoder::TokenFrameDecoder(const LlamaModel& model,
                                     std::span<const std::span<const uint8_t>> payloads,
                                     std::span<uint8_t> raw)
    : model_(model),
      coders_(payloads.begin(), payloads.end()),
      recall_(payloads.size()),
      steps_(payloads.size()) {
  for (size_t lane = 0; lane < payloads.size(); ++lane)
    rest_.push_back(lane_piece(raw, lane, payloads.size()));
}

bool TokenFrameDecoder::finished() const {
  return std::all_of(rest_.begin(), rest_.end(), [](const auto& rest) { return rest.empty(); });
}

uint32_t TokenFrameDecoder::decode(size_t lane, int32_t* logits, Distribution& distribution) {
  const size_t vocabulary = model_.arch().vocabulary;
  const uint32_t guess = begin_step(lane);
  distribution.assign(RowKind::kLogits, logits, vocabulary);
  const uint32_t freq = guess != kNoToken ? distribution.interval(guess).freq : 0;
  const uint32_t slot = decide(lane, freq);
  if (slot == kNoSlot) return take_known(lane);
  if (guess != kNoToken) exclude(distribution, steps_[lane].guess, logits, vocabulary);
  return take_found(lane, distribution.find(slot));
}

uint32_t TokenFrameDecoder::begin_step(size_t lane) {
  const Recall::Guess guess = recall_.guess(lane);
  steps_[lane] = {true, guess, 0, 0};
  return guess.context != 0 ? guess.token : kNoToken;
}

uint32_t TokenFrameDecoder::decide(size_t lane, uint32_t guess_freq) {
  RangeDecoder& coder = coders_[lane];
  Step& step = steps_[lane];
  if (step.guess.context != 0) {
    step.p16 = probability(guess_freq);
    const uint32_t p = recall_.refine(step.guess, step.p16);
    const bool known = coder.peek(kGuessBits) < p;
    coder.consume(known ? 0 : p, known ? p : kGuessTotal - p, kGuessBits);
    if (known) return kNoSlot;
  }
  return coder.peek(kFreqBits);
}

uint32_t TokenFrameDecoder::take_known(size_t lane) {
  return put_token(lane, steps_[lane].guess.token);
}

uint32_t TokenFrameDecoder::take_found(size_t lane, const FoundSymbol& found) {
  check_interval(found.interval);
  coders_[lane].consume(found.interval.lo, found.interval.freq, kFreqBits);
  return put_token(lane, static_cast<uint32_t>(found.symbol));
}

uint32_t TokenFrameDecoder::put_token(size_t lane, uint32_t token) {
  RangeDecoder& coder = coders_[lane];
  steps_[lane].token = token;
  if (token == model_.arch().escape) {
    const uint32_t byte = coder.peek(kByteBits);
    coder.consume(byte, 1, kByteBits);
    const auto value = static_cast<uint8_t>(byte);
    put(lane, {&value, 1});
  } else {
    put(lane, model_.token(token));
  }
  return token;
}

void TokenFrameDecoder::put(size_t lane, std::span<const uint8_t> bytes) {
  if (bytes.empty() || bytes.size() > rest_[lane].size())
    throw corrupt(lane, "holds a token that cannot be there");
  std::memcpy(rest_[lane].data(), bytes.data(), bytes.size());
  rest_[lane] = rest_[lane].subspan(bytes.size());
}

void TokenFrameDecoder::end_step() {
  for (size_t lane = 0; lane < steps_.size(); ++lane) {
    Step& step = steps_[lane];
    if (!step.active) continue;
    if (step.guess.context != 0)
      recall_.adapt(step.guess, step.p16, step.guess.token == step.token);
    recall_.remember(lane, step.token);
    step.active = false;
  }
}

void TokenFrameDecoder::check_truncation(size_t lane) const {
  if (coders_[lane].truncated()) throw corrupt(lane, "ends before its bytes do");
}

void TokenFrameDecoder::check_end() const {
  for (size_t lane = 0; lane < coders_.size(); ++lane) {
    if (coders_[lane].end() != StreamEnd::kExact)
      throw corrupt(lane, "is not the encoding of what it decodes to");
  }
}

}  // namespace lmzip

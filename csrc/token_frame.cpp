// token_frame.cpp: see token_frame.h.
#include "token_frame.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace lmzip {
namespace {

constexpr int kByteBits = 8;  // a raw byte: one of 256, all alike

// The row's distribution without the candidates.
void exclude(const Choice& choice, int32_t* row, size_t size, Distribution& distribution) {
  for (const Candidate& candidate : choice.candidates) row[candidate.token] = -kLlamaLogitMax;
  distribution.assign(RowKind::kLogits, row, size);
}

CorruptError corrupt(size_t lane, const char* what) {
  return CorruptError("the payload of lane " + std::to_string(lane) + " " + what +
                      "; the file is damaged");
}

}  // namespace

// --- encoding ---

TokenFrameEncoder::TokenFrameEncoder(const LlamaModel& model,
                                     std::span<const std::vector<uint32_t>> lanes)
    : model_(model), lanes_(lanes), chooser_(model.arch().vocabulary), records_(lanes.size()) {
  check_symbols();
  for (size_t lane = 0; lane < lanes.size(); ++lane) {
    longest_ = std::max(longest_, lanes[lane].size());
    records_[lane].resize(lanes[lane].size());
  }
  look_up();
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

void TokenFrameEncoder::look_up() {
  Recall recall(lanes_.size());
  for (size_t t = 0; t < longest_; ++t) {
    for (size_t lane = 0; lane < lanes_.size(); ++lane) {
      if (t < lanes_[lane].size()) recall.look_up(lane, records_[lane][t].choice.candidates);
    }
    for (size_t lane = 0; lane < lanes_.size(); ++lane) {
      if (t < lanes_[lane].size()) recall.remember(lane, token_of(lanes_[lane][t]));
    }
  }
}

void TokenFrameEncoder::predict(size_t lane, size_t t, int32_t* logits,
                                Distribution& distribution) {
  const size_t vocabulary = model_.arch().vocabulary;
  Record& record = records_[lane][t];
  const uint32_t token = token_of(lanes_[lane][t]);
  distribution.assign(RowKind::kLogits, logits, vocabulary);
  complete_choice(logits, distribution, record.choice);
  if (record.choice.find(token) < record.choice.candidates.size()) return;
  exclude(record.choice, logits, vocabulary, distribution);
  record.interval = distribution.interval(token);
}

Payloads TokenFrameEncoder::finish() {
  std::vector<RangeEncoder> coders(lanes_.size());
  std::vector<ScoredChoice> scored(lanes_.size());
  for (size_t t = 0; t < longest_; ++t) {
    for (size_t lane = 0; lane < lanes_.size(); ++lane) {
      if (t < lanes_[lane].size())
        code_symbol(records_[lane][t], lanes_[lane][t], scored[lane], coders[lane]);
    }
    for (size_t lane = 0; lane < lanes_.size(); ++lane) {
      if (t < lanes_[lane].size())
        chooser_.learn(records_[lane][t].choice, scored[lane], token_of(lanes_[lane][t]));
    }
  }
  Payloads payloads;
  for (RangeEncoder& coder : coders) payloads.push_back(coder.finish());
  return payloads;
}

void TokenFrameEncoder::code_symbol(const Record& record, uint32_t symbol, ScoredChoice& scored,
                                    RangeEncoder& coder) const {
  chooser_.score(record.choice, scored);
  const size_t chosen = record.choice.find(token_of(symbol));
  const Interval interval = scored.interval(chosen);
  coder.encode(interval.lo, interval.freq, kFreqBits);
  if (chosen == record.choice.candidates.size())
    coder.encode(record.interval.lo, record.interval.freq, kFreqBits);
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
      chooser_(model.arch().vocabulary),
      steps_(payloads.size()) {
  for (size_t lane = 0; lane < payloads.size(); ++lane)
    rest_.push_back(lane_piece(raw, lane, payloads.size()));
}

bool TokenFrameDecoder::finished() const {
  return std::all_of(rest_.begin(), rest_.end(), [](const auto& rest) { return rest.empty(); });
}

uint32_t TokenFrameDecoder::decode(size_t lane, int32_t* logits, Distribution& distribution) {
  const size_t vocabulary = model_.arch().vocabulary;
  RangeDecoder& coder = coders_[lane];
  Step& step = steps_[lane];
  step.active = true;
  recall_.look_up(lane, step.choice.candidates);
  distribution.assign(RowKind::kLogits, logits, vocabulary);
  complete_choice(logits, distribution, step.choice);
  chooser_.score(step.choice, step.scored);
  const size_t chosen = step.scored.find(coder.peek(kFreqBits));
  const Interval interval = step.scored.interval(chosen);
  coder.consume(interval.lo, interval.freq, kFreqBits);
  if (chosen < step.choice.candidates.size()) {
    step.token = step.choice.candidates[chosen].token;
  } else {
    exclude(step.choice, logits, vocabulary, distribution);
    const FoundSymbol found = distribution.find(coder.peek(kFreqBits));
    coder.consume(found.interval.lo, found.interval.freq, kFreqBits);
    step.token = static_cast<uint32_t>(found.symbol);
  }
  if (step.token == model_.arch().escape) {
    const uint32_t byte = coder.peek(kByteBits);
    coder.consume(byte, 1, kByteBits);
    const auto value = static_cast<uint8_t>(byte);
    put(lane, {&value, 1});
  } else {
    put(lane, model_.token(step.token));
  }
  return step.token;
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
    chooser_.learn(step.choice, step.scored, step.token);
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

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

void pack_all(const std::vector<Candidate>& candidates, std::vector<uint32_t>& out) {
  out.resize(candidates.size());
  out.shrink_to_fit();  // there is one for each token of the frame
  std::transform(candidates.begin(), candidates.end(), out.begin(), pack);
}

// What complete_choice() has made of the candidates that have been looked up again.
void unpack(const std::vector<uint32_t>& packed, int32_t log_p_rest, Choice& choice) {
  choice.recalled = !choice.candidates.empty();
  choice.log_p_rest = log_p_rest;
  choice.candidates.resize(packed.size());
  for (size_t i = 0; i < packed.size(); ++i) {
    choice.candidates[i].token = packed_token(packed[i]);
    choice.candidates[i].log_p = packed_log_p(packed[i]);
  }
}

// Throws std::runtime_error for an interval that is not one of a device's rows.
void check_interval(const Interval& interval) {
  if (interval.freq == 0 || uint64_t{interval.lo} + interval.freq > kFreqTotal) {
    throw std::runtime_error("[" + std::to_string(interval.lo) + ", +" +
                             std::to_string(interval.freq) +
                             ") cannot be the interval of this token: a defect of the device or "
                             "of its engine, not of the file");
  }
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
  std::vector<Candidate> found;
  for (size_t t = 0; t < longest_; ++t) {
    for (size_t lane = 0; lane < lanes_.size(); ++lane) {
      if (t >= lanes_[lane].size()) continue;
      recall.look_up(lane, found);
      pack_all(found, records_[lane][t].packed);
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
  Choice choice = recalled(record);
  complete_choice(logits, distribution, choice);
  if (!record_choice(choice, token, record)) return;
  exclude(choice, logits, vocabulary, distribution);
  record.interval = distribution.interval(token);
}

RowQuestion TokenFrameEncoder::question(size_t lane, size_t t) const {
  return make_question(input(lane, t), token_of(lanes_[lane][t]), records_[lane][t].packed,
                       packed_token);
}

void TokenFrameEncoder::predict(size_t lane, size_t t, const RowAnswer& answer) {
  Record& record = records_[lane][t];
  Choice choice = recalled(record);
  complete_choice(answer, model_.arch().vocabulary, choice);
  if (!record_choice(choice, token_of(lanes_[lane][t]), record)) return;
  check_interval(answer.target);
  record.interval = answer.target;
}

Choice TokenFrameEncoder::recalled(const Record& record) {
  Choice choice;
  for (const uint32_t packed : record.packed) choice.candidates.push_back({packed_token(packed)});
  return choice;
}

bool TokenFrameEncoder::record_choice(const Choice& choice, uint32_t token, Record& record) {
  pack_all(choice.candidates, record.packed);
  record.log_p_rest = choice.log_p_rest;
  return choice.find(token) == choice.candidates.size();
}

Payloads TokenFrameEncoder::finish() {
  std::vector<RangeEncoder> coders(lanes_.size());
  std::vector<Choice> choices(lanes_.size());
  std::vector<ScoredChoice> scored(lanes_.size());
  Recall recall(lanes_.size());  // once more: what was looked up takes more room than time
  for (size_t t = 0; t < longest_; ++t) {
    for (size_t lane = 0; lane < lanes_.size(); ++lane) {
      if (t >= lanes_[lane].size()) continue;
      const Record& record = records_[lane][t];
      recall.look_up(lane, choices[lane].candidates);
      unpack(record.packed, record.log_p_rest, choices[lane]);
      code_symbol(choices[lane], record.interval, lanes_[lane][t], scored[lane], coders[lane]);
    }
    for (size_t lane = 0; lane < lanes_.size(); ++lane) {
      if (t >= lanes_[lane].size()) continue;
      const uint32_t token = token_of(lanes_[lane][t]);
      chooser_.learn(choices[lane], scored[lane], token);
      recall.remember(lane, token);
    }
  }
  Payloads payloads;
  for (RangeEncoder& coder : coders) payloads.push_back(coder.finish());
  return payloads;
}

void TokenFrameEncoder::code_symbol(const Choice& choice, const Interval& among_rest,
                                    uint32_t symbol, ScoredChoice& scored,
                                    RangeEncoder& coder) const {
  chooser_.score(choice, scored);
  const size_t chosen = choice.find(token_of(symbol));
  const Interval interval = scored.interval(chosen);
  coder.encode(interval.lo, interval.freq, kFreqBits);
  if (chosen == choice.candidates.size()) coder.encode(among_rest.lo, among_rest.freq, kFreqBits);
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
  for (Step& step : steps_) step.token = model.arch().start;
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
  recall_.look_up(lane, step.choice.candidates);
  distribution.assign(RowKind::kLogits, logits, vocabulary);
  complete_choice(logits, distribution, step.choice);
  choose(lane);
  if (!step.chosen) {
    exclude(step.choice, logits, vocabulary, distribution);
    const FoundSymbol found = distribution.find(coder.peek(kFreqBits));
    coder.consume(found.interval.lo, found.interval.freq, kFreqBits);
    step.token = static_cast<uint32_t>(found.symbol);
  }
  return put_token(lane);
}

RowQuestion TokenFrameDecoder::question(size_t lane) {
  std::vector<Candidate>& found = steps_[lane].choice.candidates;
  recall_.look_up(lane, found);
  return make_question(steps_[lane].token, kNoToken, found,
                       [](const Candidate& c) { return c.token; });
}

std::optional<uint32_t> TokenFrameDecoder::choose(size_t lane, const RowAnswer& answer) {
  complete_choice(answer, model_.arch().vocabulary, steps_[lane].choice);
  choose(lane);
  if (steps_[lane].chosen) return std::nullopt;
  return coders_[lane].peek(kFreqBits);
}

uint32_t TokenFrameDecoder::decode(size_t lane, const FoundToken& found) {
  Step& step = steps_[lane];
  if (!step.chosen) {
    check_interval(found.interval);
    // Unsigned: a slot below lo is far beyond freq.
    const uint32_t slot = coders_[lane].peek(kFreqBits);
    if (slot - found.interval.lo >= found.interval.freq ||
        found.token >= model_.arch().vocabulary) {
      throw std::runtime_error("token " + std::to_string(found.token) +
                               " cannot lie there: a defect of the device or of its engine, not "
                               "of the file");
    }
    coders_[lane].consume(found.interval.lo, found.interval.freq, kFreqBits);
    step.token = found.token;
  }
  return put_token(lane);
}

void TokenFrameDecoder::choose(size_t lane) {
  RangeDecoder& coder = coders_[lane];
  Step& step = steps_[lane];
  step.active = true;
  chooser_.score(step.choice, step.scored);
  const size_t chosen = step.scored.find(coder.peek(kFreqBits));
  const Interval interval = step.scored.interval(chosen);
  coder.consume(interval.lo, interval.freq, kFreqBits);
  step.chosen = chosen < step.choice.candidates.size();
  if (step.chosen) step.token = step.choice.candidates[chosen].token;
}

uint32_t TokenFrameDecoder::put_token(size_t lane) {
  RangeDecoder& coder = coders_[lane];
  const Step& step = steps_[lane];
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

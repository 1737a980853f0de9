// token_frame.cpp: see token_frame.h.
#include "token_frame.h"

#include <algorithm>
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
  if (!interval.valid()) {
    throw std::runtime_error("[" + std::to_string(interval.lo) + ", +" +
                             std::to_string(interval.freq) +
                             ") cannot be the interval of this token: a defect of the device or "
                             "of its engine, not of the file");
  }
}

std::vector<uint8_t> varint(uint64_t n) {
  std::vector<uint8_t> out;
  for (; n >= 0x80; n >>= 7) out.push_back(static_cast<uint8_t>(n | 0x80));
  out.push_back(static_cast<uint8_t>(n));
  return out;
}

// Takes the number of symbols from the front of the first lane's payload.  A symbol spells at least
// one byte and at most kMaxTokenSize.
size_t take_size(std::span<const uint8_t>& payload, size_t raw_size) {
  uint64_t n = 0;
  for (size_t i = 0; i < payload.size() && i < 9; ++i) {
    n |= uint64_t{payload[i] & 0x7Fu} << 7 * i;
    if (payload[i] >= 0x80) continue;
    if (n > raw_size || n * kMaxTokenSize < raw_size || (i > 0 && payload[i] == 0)) break;
    payload = payload.subspan(i + 1);
    return n;
  }
  throw CorruptError("the first lane does not begin with how many symbols " +
                     std::to_string(raw_size) + " bytes are; the file is damaged");
}

CorruptError corrupt(size_t lane, const char* what) {
  return CorruptError("the payload of lane " + std::to_string(lane) + " " + what +
                      "; the file is damaged");
}

}  // namespace

// --- encoding ---

TokenFrameEncoder::TokenFrameEncoder(const LlamaModel& model, std::span<const uint32_t> symbols,
                                     size_t lanes)
    : model_(model), size_(symbols.size()), chooser_(model.arch().vocabulary), records_(lanes) {
  const TokenLanes cut(symbols.size(), lanes);
  for (size_t lane = 0; lane < lanes; ++lane) {
    lanes_.push_back(symbols.subspan(cut.begin(lane), cut.size(lane)));
    records_[lane].resize(cut.size(lane));
  }
  check_symbols();
  look_up();
}

void TokenFrameEncoder::check_symbols() const {
  const size_t vocabulary = model_.arch().vocabulary;
  for (const std::span<const uint32_t> lane : lanes_) {
    for (const uint32_t s : lane) {
      if (s < vocabulary ? model_.token(s).empty() : s >= vocabulary + 256)
        throw std::invalid_argument("symbol " + std::to_string(s) + " stands for no bytes");
    }
  }
}

void TokenFrameEncoder::look_up() {
  Recall recall(lanes_.size());
  std::vector<Candidate> found;
  for (size_t t = 0; t < longest(); ++t) {
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
  for (size_t t = 0; t < longest(); ++t) {
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
  const std::vector<uint8_t> size = varint(size_);
  payloads[0].insert(payloads[0].begin(), size.begin(), size.end());
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
                                     size_t raw_size)
    : model_(model),
      raw_size_(raw_size),
      lanes_(payloads.size()),
      recall_(payloads.size()),
      chooser_(model.arch().vocabulary) {
  std::span<const uint8_t> first = payloads[0];
  const TokenLanes cut(take_size(first, raw_size), payloads.size());
  longest_ = cut.size(0);
  for (size_t lane = 0; lane < payloads.size(); ++lane) {
    lanes_[lane].coder = RangeDecoder(lane == 0 ? first : payloads[lane]);
    lanes_[lane].left = cut.size(lane);
    lanes_[lane].token = model.arch().start;
  }
}

bool TokenFrameDecoder::finished() const {
  return std::all_of(lanes_.begin(), lanes_.end(), [](const Lane& lane) { return lane.left == 0; });
}

uint32_t TokenFrameDecoder::decode(size_t i, int32_t* logits, Distribution& distribution) {
  const size_t vocabulary = model_.arch().vocabulary;
  Lane& lane = lanes_[i];
  recall_.look_up(i, lane.choice.candidates);
  distribution.assign(RowKind::kLogits, logits, vocabulary);
  complete_choice(logits, distribution, lane.choice);
  choose(lane);
  if (!lane.chosen) {
    exclude(lane.choice, logits, vocabulary, distribution);
    const FoundSymbol found = distribution.find(lane.coder.peek(kFreqBits));
    lane.coder.consume(found.interval.lo, found.interval.freq, kFreqBits);
    lane.token = static_cast<uint32_t>(found.symbol);
  }
  return put_token(i);
}

RowQuestion TokenFrameDecoder::question(size_t lane) {
  std::vector<Candidate>& found = lanes_[lane].choice.candidates;
  recall_.look_up(lane, found);
  return make_question(lanes_[lane].token, kNoToken, found,
                       [](const Candidate& c) { return c.token; });
}

std::optional<uint32_t> TokenFrameDecoder::choose(size_t i, const RowAnswer& answer) {
  Lane& lane = lanes_[i];
  complete_choice(answer, model_.arch().vocabulary, lane.choice);
  choose(lane);
  if (lane.chosen) return std::nullopt;
  return lane.coder.peek(kFreqBits);
}

uint32_t TokenFrameDecoder::decode(size_t i, const FoundToken& found) {
  Lane& lane = lanes_[i];
  if (!lane.chosen) {
    check_interval(found.interval);
    // Unsigned: a slot below lo is far beyond freq.
    const uint32_t slot = lane.coder.peek(kFreqBits);
    if (slot - found.interval.lo >= found.interval.freq ||
        found.token >= model_.arch().vocabulary) {
      throw std::runtime_error("token " + std::to_string(found.token) +
                               " cannot lie there: a defect of the device or of its engine, not "
                               "of the file");
    }
    lane.coder.consume(found.interval.lo, found.interval.freq, kFreqBits);
    lane.token = found.token;
  }
  return put_token(i);
}

void TokenFrameDecoder::choose(Lane& lane) {
  lane.stepped = true;
  chooser_.score(lane.choice, lane.scored);
  const size_t chosen = lane.scored.find(lane.coder.peek(kFreqBits));
  const Interval interval = lane.scored.interval(chosen);
  lane.coder.consume(interval.lo, interval.freq, kFreqBits);
  lane.chosen = chosen < lane.choice.candidates.size();
  if (lane.chosen) lane.token = lane.choice.candidates[chosen].token;
}

uint32_t TokenFrameDecoder::put_token(size_t i) {
  Lane& lane = lanes_[i];
  if (lane.token == model_.arch().escape) {
    const uint32_t byte = lane.coder.peek(kByteBits);
    lane.coder.consume(byte, 1, kByteBits);
    lane.bytes.push_back(static_cast<uint8_t>(byte));
  } else {
    const std::span<const uint8_t> bytes = model_.token(lane.token);
    if (bytes.empty()) throw corrupt(i, "holds a token that cannot be there");
    lane.bytes.insert(lane.bytes.end(), bytes.begin(), bytes.end());
  }
  --lane.left;
  return lane.token;
}

void TokenFrameDecoder::end_step() {
  decoded_ = 0;
  for (size_t i = 0; i < lanes_.size(); ++i) {
    Lane& lane = lanes_[i];
    decoded_ += lane.bytes.size();
    if (!lane.stepped) continue;
    chooser_.learn(lane.choice, lane.scored, lane.token);
    recall_.remember(i, lane.token);
    lane.stepped = false;
  }
  check_decoded(decoded_ <= raw_size_);
}

void TokenFrameDecoder::check_decoded(bool fits) const {
  if (fits) return;
  throw CorruptError("the payloads hold " + std::to_string(decoded_) + " bytes or more, not " +
                     std::to_string(raw_size_) + "; the file is damaged");
}

void TokenFrameDecoder::check_truncation(size_t lane) const {
  if (lanes_[lane].coder.truncated()) throw corrupt(lane, "ends before its symbols do");
}

void TokenFrameDecoder::finish(std::span<uint8_t> raw) const {
  for (size_t i = 0; i < lanes_.size(); ++i) {
    if (lanes_[i].coder.end() != StreamEnd::kExact)
      throw corrupt(i, "is not the encoding of what it decodes to");
  }
  check_decoded(decoded_ == raw_size_);
  uint8_t* to = raw.data();
  for (const Lane& lane : lanes_) to = std::copy(lane.bytes.begin(), lane.bytes.end(), to);
}

}  // namespace lmzip

// token_check.cpp: frames of tokens coded by a device's answers (token_answers.h) are those coded
// by whole rows, and come back; damaged ones fail alike.  Several sizes at once, any number of
// threads.
#include <algorithm>
#include <deque>
#include <string>

#include "check.h"
#include "errors.h"
#include "token_codec.h"
#include "token_frame.h"
#include "token_lockstep.h"

namespace lmzip {
namespace {

using test::Random;

using Bytes = std::vector<uint8_t>;
using Frame = TokenLockstepEncoder::Frame;
using Row = std::vector<int32_t>;

constexpr size_t kVocabulary = 700;  // token 0 is the escape, 1 to 256 are bytes, then pairs
constexpr size_t kShapes[][2] = {{1, 1}, {9, 355}, {4, 2}, {3, 388}, {30, 360}};  // lanes, symbols

// The least model that there is; its network is never asked.
class SmallModel {
 public:
  SmallModel() {
    add<int8_t>("embedding.weight", "int8", {kVocabulary, 32});
    add<float>("embedding.scale", "float32", {kVocabulary}, 1);
    for (const auto& [name, outputs] : std::initializer_list<std::pair<const char*, size_t>>{
             {"qkv", 96}, {"out", 32}, {"gate_up", 64}, {"down", 32}}) {
      const std::string layer = std::string("layers.0.") + name;
      add<int8_t>(layer + ".weight", "int8", {outputs, 32});
      add<float>(layer + ".scale", "float32", {outputs}, 1);
    }
    add<int32_t>("layers.0.qkv.bias", "int32", {96});
    for (const char* name : {"layers.0.attention.norm", "layers.0.mlp.norm", "head.norm"})
      add<float>(name, "float32", {32});
    add<float>("head.scale", "float32", {kVocabulary}, 1);
    add<float>("softmax", "float32", {1}, 1);
    add<uint16_t>("sigmoid", "uint16", {8192});
    add<uint32_t>("rotary.frequency", "uint32", {16});
    add<int16_t>("rotary.cosine", "int16", {4096});
    Bytes bytes;
    auto* sizes = add<uint16_t>("tokens.size", "uint16", {kVocabulary}, 2);
    sizes[0] = 0;
    for (size_t i = 1; i < kVocabulary; ++i) {
      if (i <= 256) sizes[i] = 1;
      for (size_t j = 0; j < sizes[i]; ++j) bytes.push_back(static_cast<uint8_t>(i - 1 + 7 * j));
    }
    auto* text = add<uint8_t>("tokens.bytes", "uint8", {bytes.size()});
    std::copy(bytes.begin(), bytes.end(), text);
  }

  LlamaModel model() const {
    LlamaArchitecture a{};
    a.vocabulary = kVocabulary;
    a.d_model = a.head_dim = a.d_ff = 32;
    a.n_layers = a.n_heads = a.n_kv_heads = 1;
    a.windows = {1};
    a.sinks = {0};
    a.local = {false};
    a.tied = true;
    return LlamaModel(a, tensors_);
  }

 private:
  template <typename T>
  T* add(const std::string& name, const char* dtype, const std::vector<size_t>& shape,
         T value = 0) {
    size_t size = sizeof(T);
    for (const size_t n : shape) size *= n;
    kept_.emplace_back(size / 8 + 1);
    T* data = reinterpret_cast<T*>(kept_.back().data());
    std::fill_n(data, size / sizeof(T), value);
    tensors_[name] = {dtype, shape, data};
    return data;
  }

  std::deque<std::vector<uint64_t>> kept_;
  Tensors tensors_;
};

// A stand-in for the network: what it says at a step of a lane, counted over all frames.  Flat
// rows, steep ones, and some of which 512 tokens are likely.
Row row_of(size_t lane, size_t step) {
  Random random(lane * 1000003 + step);
  Row row(kVocabulary);
  const uint64_t spread = uint64_t{1} << random.below(15);
  for (int32_t& logit : row) logit = static_cast<int32_t>(random.below(spread));
  if (step % 7 == 3) std::fill(row.begin() + 512, row.end(), -kLlamaLogitMax);
  if (step % 7 == 3) std::fill(row.begin(), row.begin() + 512, 5);
  return row;
}

// --- what a device would do ---

void exclude(const RowQuestion& question, const RowAnswer& answer, Row& row) {
  for (const uint32_t token : question.recalled) {
    if (token != kNoToken) row[token] = -kLlamaLogitMax;
  }
  for (size_t i = 0; i < answer.likely_count; ++i) row[answer.likely[i].token] = -kLlamaLogitMax;
}

RowAnswer answer_of(const RowQuestion& question, Row row) {
  Distribution distribution;
  distribution.assign(RowKind::kLogits, row.data(), row.size());
  const uint64_t sum = distribution.sum();
  RowAnswer answer{static_cast<uint32_t>(sum), static_cast<uint32_t>(sum >> 32), 0, {}, {}, {}};
  const auto below = [&](uint32_t token) {
    return static_cast<uint32_t>(distribution.top_logit() - row[token]);
  };
  distribution.for_likely(kLikelyShift, [&](size_t symbol) {
    const auto token = static_cast<uint32_t>(symbol);
    answer.likely[answer.likely_count++] = {token, below(token)};
  });
  for (size_t i = 0; i < question.recalled.size(); ++i) {
    if (question.recalled[i] != kNoToken) answer.recalled[i] = below(question.recalled[i]);
  }
  if (question.target == kNoToken) return answer;
  exclude(question, answer, row);
  distribution.assign(RowKind::kLogits, row.data(), row.size());
  answer.target = distribution.interval(question.target);  // a candidate's is not looked at
  return answer;
}

FoundToken search(const RowQuestion& question, const RowAnswer& answer, Row row, uint32_t slot) {
  if (slot == kNoToken) return {};
  CHECK(slot < kFreqTotal);
  exclude(question, answer, row);
  Distribution distribution;
  distribution.assign(RowKind::kLogits, row.data(), row.size());
  const FoundSymbol found = distribution.find(slot);
  return {static_cast<uint32_t>(found.symbol), found.interval};
}

// --- both ways in ---

std::vector<Frame> random_frames() {
  Random random(2);
  std::vector<Frame> frames;
  for (const auto& [lanes, symbols] : kShapes) {
    Frame frame{{}, lanes};
    for (size_t t = 0; t < symbols; ++t) {
      // Some over and over, so that they are recalled; any token; raw bytes.
      const uint64_t kind = random.below(8);
      frame.symbols.push_back(static_cast<uint32_t>(kind < 5   ? 300 + random.below(3)
                                                    : kind < 7 ? 1 + random.below(kVocabulary - 1)
                                                               : kVocabulary + random.below(256)));
    }
    frames.push_back(frame);
  }
  return frames;
}

Bytes spell(const LlamaModel& model, const std::vector<uint32_t>& symbols) {
  Bytes raw;
  for (const uint32_t s : symbols) {
    const auto token = s < kVocabulary ? model.token(s) : std::span<const uint8_t>();
    raw.insert(raw.end(), token.begin(), token.end());
    if (s >= kVocabulary) raw.push_back(static_cast<uint8_t>(s - kVocabulary));
  }
  return raw;
}

std::vector<Payloads> encode_by_rows(const LlamaModel& model, const std::vector<Frame>& frames) {
  std::vector<Payloads> payloads;
  size_t first = 0;
  for (const Frame& frame : frames) {
    TokenFrameEncoder encoder(model, frame.symbols, frame.lanes);
    Distribution distribution;
    for (size_t lane = 0; lane < frame.lanes; ++lane) {
      for (size_t t = 0; t < encoder.size(lane); ++t) {
        Row row = row_of(first + lane, t);
        encoder.predict(lane, t, row.data(), distribution);
      }
    }
    payloads.push_back(encoder.finish());
    first += frame.lanes;
  }
  return payloads;
}

std::vector<Payloads> encode(const LlamaModel& model, const std::vector<Frame>& frames,
                             size_t threads, size_t block) {
  TokenLockstepEncoder encoder(model, frames, threads);
  for (size_t begin = 0; begin < encoder.steps(); begin += block) {
    std::vector<RowQuestion> questions(encoder.lanes() * block);
    std::vector<RowAnswer> answers(questions.size());
    encoder.ask(questions.data(), block);
    for (size_t i = 0; i < questions.size(); ++i)
      answers[i] = answer_of(questions[i], row_of(i / block, begin + i % block));
    encoder.take(answers.data(), block);
  }
  return encoder.finish();
}

struct Decoded {
  Bytes raw;
  std::string error;
  friend bool operator==(const Decoded&, const Decoded&) = default;
};

Decoded decode_by_rows(const LlamaModel& model, const std::vector<std::span<const uint8_t>>& from,
                       size_t size, size_t first) {
  Decoded out{Bytes(size), {}};
  Distribution distribution;
  try {
    TokenFrameDecoder decoder(model, from, size);
    for (size_t t = 0; !decoder.finished(); ++t) {
      for (size_t lane = 0; lane < from.size(); ++lane) {
        if (!decoder.active(lane)) continue;
        Row row = row_of(first + lane, t);
        decoder.decode(lane, row.data(), distribution);
        if (t % 64 == 0) decoder.check_truncation(lane);
      }
      decoder.end_step();
    }
    decoder.finish(out.raw);
  } catch (const CorruptError& error) {
    out.error = error.what();
  }
  return out;
}

std::vector<Decoded> decode(const LlamaModel& model,
                            const std::vector<std::vector<std::span<const uint8_t>>>& from,
                            const std::vector<size_t>& sizes, size_t threads) {
  std::vector<Decoded> out;
  std::vector<TokenLockstepDecoder::Frame> frames;
  for (const size_t size : sizes) out.push_back({Bytes(size), {}});
  for (size_t f = 0; f < from.size(); ++f) frames.push_back({from[f], out[f].raw});
  TokenLockstepDecoder decoder(model, frames, threads);
  const size_t lanes = decoder.lanes();
  std::vector<RowQuestion> questions(lanes);
  std::vector<RowAnswer> answers(lanes);
  std::vector<uint32_t> slots(lanes);
  std::vector<FoundToken> found(lanes);
  for (size_t t = 0; decoder.active() > 0; ++t) {
    decoder.ask(questions.data());
    for (size_t i = 0; i < lanes; ++i) answers[i] = answer_of(questions[i], row_of(i, t));
    const size_t wanted = decoder.choose(answers.data(), slots.data());
    CHECK(wanted == lanes - static_cast<size_t>(std::count(slots.begin(), slots.end(), kNoToken)));
    for (size_t i = 0; i < lanes; ++i)
      found[i] = search(questions[i], answers[i], row_of(i, t), slots[i]);
    decoder.take(found.data());
  }
  for (size_t f = 0; f < from.size(); ++f) {
    try {
      decoder.finish(f);
    } catch (const CorruptError& error) {
      out[f].error = error.what();
    }
  }
  return out;
}

std::vector<std::vector<std::span<const uint8_t>>> views(const std::vector<Payloads>& payloads) {
  std::vector<std::vector<std::span<const uint8_t>>> out;
  for (const Payloads& frame : payloads) out.emplace_back(frame.begin(), frame.end());
  return out;
}

void check_tokens() {
  const LlamaModel model = SmallModel().model();
  const std::vector<Frame> frames = random_frames();
  std::vector<size_t> sizes;
  for (const Frame& frame : frames) sizes.push_back(spell(model, frame.symbols).size());
  const std::vector<Payloads> payloads = encode_by_rows(model, frames);
  CHECK(encode(model, frames, 1, 1) == payloads);
  CHECK(encode(model, frames, 3, 16) == payloads);

  for (const size_t threads : {size_t{1}, size_t{3}}) {
    const std::vector<Decoded> decoded = decode(model, views(payloads), sizes, threads);
    for (size_t f = 0; f < frames.size(); ++f)
      CHECK((decoded[f] == Decoded{spell(model, frames[f].symbols), {}}));
  }

  for (uint64_t seed = 0; seed < 8; ++seed) {
    Random random(seed);
    std::vector<Payloads> bad = payloads;
    for (Bytes& payload : bad[3]) {
      for (uint8_t& byte : payload) byte = static_cast<uint8_t>(random.next());
      payload.resize(random.below(payload.size()));
    }
    Bytes& flipped = bad[1][seed];
    flipped[random.below(flipped.size())] ^= static_cast<uint8_t>(1 << random.below(8));
    const auto spans = views(bad);
    const std::vector<Decoded> decoded = decode(model, spans, sizes, 2);
    for (size_t f = 0, first = 0; f < frames.size(); first += frames[f++].lanes) {
      const Decoded expected = decode_by_rows(model, spans[f], sizes[f], first);
      CHECK(expected.error.empty() != (f == 1 || f == 3));
      // What a frame holds when an error has ended it is nobody's.
      CHECK(decoded[f].error == expected.error);
      CHECK(!expected.error.empty() || decoded[f].raw == expected.raw);
    }
  }
}

// With a network of its own, which all threads ask.
void check_codec() {
  const LlamaModel model = SmallModel().model();
  for (const Frame& frame : random_frames()) {
    const Payloads payloads = encode_tokens(model, frame.symbols, frame.lanes, 1);
    CHECK(encode_tokens(model, frame.symbols, frame.lanes, 3) == payloads);
    const Bytes expected = spell(model, frame.symbols);
    const std::vector<std::span<const uint8_t>> views(payloads.begin(), payloads.end());
    for (const size_t threads : {size_t{1}, size_t{2}, size_t{5}}) {
      Bytes raw(expected.size());
      decode_tokens(model, views, raw, threads);
      CHECK(raw == expected);
    }
    for (const TokenTeams teams : {TokenTeams{1, 3}, TokenTeams{2, 2}, TokenTeams{3, 4}}) {
      if (teams.teams > frame.lanes) continue;
      Bytes raw(expected.size());
      decode_tokens(model, views, raw, teams);
      CHECK(raw == expected);
    }
  }
}

void check_teams(size_t lanes, size_t threads, Kernel kernel, size_t teams, size_t size) {
  const TokenTeams made = token_teams(lanes, threads, kernel);
  CHECK(made.teams == teams && made.size == size);
}

void check_teams() {
  for (const Kernel kernel : {Kernel::kPortable, Kernel::kVnni, Kernel::kAmx, Kernel::kDotprod}) {
    for (size_t lanes = 0; lanes <= 300; ++lanes) {
      size_t most = 0;
      for (size_t threads = 0; threads <= 300; ++threads) {
        const TokenTeams made = token_teams(lanes, threads, kernel);
        CHECK(made.teams >= 1 && made.teams <= std::max<size_t>(lanes, 1) && made.size >= 1);
        CHECK(made.size <= kMostTokenTeam && made.threads() <= std::max<size_t>(threads, 1));
        most = std::max(most, made.threads());
      }
      CHECK(most_token_threads(lanes, kernel) == most);
    }
    check_teams(1, 8, kernel, 1, 4);
    check_teams(3, 2, kernel, 1, 2);
    check_teams(64, 1, kernel, 1, 1);
  }
  check_teams(64, 2, Kernel::kVnni, 2, 1);
  check_teams(4, 8, Kernel::kVnni, 2, 1);
  check_teams(48, 2, Kernel::kAmx, 1, 2);
  check_teams(96, 2, Kernel::kAmx, 2, 1);
  check_teams(96, 3, Kernel::kAmx, 3, 1);
  check_teams(96, 4, Kernel::kAmx, 2, 2);
  check_teams(48, 6, Kernel::kAmx, 2, 3);
  check_teams(12, 16, Kernel::kAmx, 4, 4);
  check_teams(4, 16, Kernel::kAmx, 2, 4);
}

}  // namespace
}  // namespace lmzip

int main() {
  lmzip::check_tokens();
  lmzip::check_codec();
  lmzip::check_teams();
}

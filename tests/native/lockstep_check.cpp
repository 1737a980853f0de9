// lockstep_check.cpp: the lockstep coders and their crew under the sanitizers: frames of several
// sizes at once, any number of threads, damaged payloads.
#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

#include "check.h"
#include "errors.h"
#include "lockstep.h"

namespace lmzip {
namespace {

using test::Random;

struct Shape {
  size_t raw_size, lanes;
};
constexpr Shape kShapes[] = {{1, 1}, {10, 7}, {500, 37}, {0, 3}, {301, 4}, {257, 128}};
constexpr size_t kSteps = 310;

using Bytes = std::vector<uint8_t>;
using FramePayloads = std::vector<Bytes>;

std::vector<Bytes> random_frames() {
  Random random(1);
  std::vector<Bytes> frames;
  for (const Shape& shape : kShapes) {
    Bytes raw(shape.raw_size);
    for (uint8_t& byte : raw) byte = static_cast<uint8_t>(random.below(7) * random.below(30));
    frames.push_back(raw);
  }
  return frames;
}

size_t total_lanes() {
  size_t lanes = 0;
  for (const Shape& shape : kShapes) lanes += shape.lanes;
  return lanes;
}

// Each frame has tables of its own size, as frames of different sizes do.
LockstepMixer mixer_of(size_t frame, bool with_mixer) {
  if (!with_mixer) return {};
  return {16 + static_cast<int>(frame % 3),
          frame % 2 ? MixerProfile::kText : MixerProfile::kStrong};
}

// A stand-in for the network: what it says of a lane and step, and no more.
void distances_of(size_t lane, size_t step, uint16_t* out) {
  Random random(lane * 1000003 + step);
  for (size_t i = 0; i < 256; ++i) out[i] = static_cast<uint16_t>(random.below(20000));
  out[random.below(256)] = 0;
  out[random.below(256)] = 65535;
}

void fill(const uint16_t* distances, Distribution& distribution, std::vector<int32_t>& logits) {
  for (size_t i = 0; i < 256; ++i) logits[i] = -int32_t{distances[i]};
  CHECK(distribution.assign(RowKind::kLogits, logits.data(), 256) == RowStatus::kOk);
}

std::vector<FramePayloads> encode(const std::vector<Bytes>& frames, bool with_mixer, size_t threads,
                                  size_t block) {
  std::vector<LockstepEncoder::Frame> views;
  for (size_t i = 0; i < frames.size(); ++i)
    views.push_back({frames[i], kShapes[i].lanes, mixer_of(i, with_mixer)});
  LockstepEncoder encoder(views, threads);
  Distribution distribution;
  std::vector<int32_t> logits(256);
  for (size_t begin = 0; begin < kSteps; begin += block) {
    std::vector<uint16_t> distances(total_lanes() * block * 256);
    std::vector<Interval> intervals(total_lanes() * block);
    size_t lane = 0;
    for (size_t f = 0; f < frames.size(); ++f) {
      const size_t stride = (frames[f].size() + kShapes[f].lanes - 1) / kShapes[f].lanes;
      for (size_t i = 0; i < kShapes[f].lanes; ++i, ++lane) {
        for (size_t t = 0; t < block; ++t) {
          uint16_t* row = distances.data() + (lane * block + t) * 256;
          distances_of(lane, begin + t, row);
          fill(row, distribution, logits);
          const size_t at = i * stride + begin + t;
          const bool inside = begin + t < stride && at < frames[f].size();
          intervals[lane * block + t] = distribution.interval(inside ? frames[f][at] : 0);
        }
      }
    }
    if (with_mixer) {
      encoder.take_distances(distances.data(), block);
    } else {
      encoder.take_intervals(intervals.data(), block);
    }
  }
  return encoder.finish();
}

std::vector<Bytes> decode(const std::vector<FramePayloads>& payloads, bool with_mixer,
                          size_t threads, std::vector<bool>& sound) {
  std::vector<Bytes> raws;
  std::vector<std::vector<std::span<const uint8_t>>> spans;
  for (size_t f = 0; f < payloads.size(); ++f) {
    raws.emplace_back(kShapes[f].raw_size);
    spans.emplace_back(payloads[f].begin(), payloads[f].end());
  }
  std::vector<LockstepDecoder::Frame> views;
  for (size_t f = 0; f < payloads.size(); ++f)
    views.push_back({spans[f], raws[f], mixer_of(f, with_mixer)});
  LockstepDecoder decoder(views, threads);
  Distribution distribution;
  std::vector<int32_t> logits(256);
  std::vector<uint16_t> distances(total_lanes() * 256);
  std::vector<uint32_t> slots(total_lanes());
  std::vector<uint8_t> bytes(total_lanes());
  std::vector<Interval> intervals(total_lanes());
  for (size_t t = 0; t < kSteps && decoder.active() > 0; ++t) {
    for (size_t lane = 0; lane < total_lanes(); ++lane)
      distances_of(lane, t, distances.data() + lane * 256);
    if (with_mixer) {
      decoder.take_distances(distances.data(), bytes.data());
      continue;
    }
    decoder.slots(slots.data());
    for (size_t lane = 0; lane < total_lanes(); ++lane) {
      fill(distances.data() + lane * 256, distribution, logits);
      const FoundSymbol found = distribution.find(slots[lane]);
      bytes[lane] = static_cast<uint8_t>(found.symbol);
      intervals[lane] = found.interval;
    }
    decoder.take_intervals(bytes.data(), intervals.data());
  }
  sound.clear();
  for (size_t f = 0; f < payloads.size(); ++f) {
    try {
      decoder.check(f);
      sound.push_back(true);
    } catch (const CorruptError&) {
      sound.push_back(false);
    }
  }
  return raws;
}

void check_round_trips(bool with_mixer) {
  const std::vector<Bytes> frames = random_frames();
  const std::vector<FramePayloads> payloads = encode(frames, with_mixer, 1, 1);
  CHECK(encode(frames, with_mixer, 4, 31) == payloads);
  std::vector<bool> sound;
  for (const size_t threads : {size_t{1}, size_t{4}}) {
    CHECK(decode(payloads, with_mixer, threads, sound) == frames);
    CHECK(std::count(sound.begin(), sound.end(), true) == std::ssize(frames));
  }
}

void check_damage(bool with_mixer) {
  const std::vector<Bytes> frames = random_frames();
  const std::vector<FramePayloads> good = encode(frames, with_mixer, 2, 10);
  for (uint64_t seed = 0; seed < 6; ++seed) {
    Random random(seed);
    std::vector<FramePayloads> bad = good;
    for (Bytes& payload : bad[4]) {
      for (uint8_t& byte : payload) byte = static_cast<uint8_t>(random.next());
      payload.resize(random.below(payload.size()));
    }
    std::vector<bool> sound;
    const std::vector<Bytes> raws = decode(bad, with_mixer, 2, sound);
    for (size_t f = 0; f < frames.size(); ++f) CHECK(f == 4 || (sound[f] && raws[f] == frames[f]));
    CHECK(!sound[4]);
  }
}

void check_crew() {
  Crew crew(4);
  for (size_t round = 0; round < 300; ++round) {
    std::vector<int> done(round);
    crew.run(round, [&](size_t task) { ++done[task]; });
    CHECK(std::count(done.begin(), done.end(), 1) == std::ssize(done));
  }
  bool thrown = false;
  try {
    crew.run(50, [](size_t task) {
      if (task == 13) throw std::runtime_error("13");
    });
  } catch (const std::runtime_error&) {
    thrown = true;
  }
  CHECK(thrown);
  std::atomic<int> after = 0;
  crew.run(10, [&](size_t) { ++after; });
  CHECK(after == 10);
}

}  // namespace
}  // namespace lmzip

int main() {
  lmzip::check_crew();
  for (const bool with_mixer : {false, true}) {
    lmzip::check_round_trips(with_mixer);
    lmzip::check_damage(with_mixer);
  }
}

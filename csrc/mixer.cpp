// mixer.cpp: see mixer.h.
#include "mixer.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "errors.h"
#include "mixer_engine.h"

namespace lmzip {

namespace {

constexpr size_t kCheckEvery = 64;  // bytes of a lane, between looks for what ends the frame

template <class Mix>
[[gnu::always_inline]] inline Opinions opinions_of(const uint32_t* weights, uint8_t byte) {
  NetworkBits network{weights};
  Opinions opinions;
  for (size_t nibble = 0; nibble < 2; ++nibble) {
    network.nodes<Mix>(nibble == 0 ? 0 : 16u | byte >> 4);
    opinions.nodes[nibble] = network.stretched;
  }
  return opinions;
}

#if defined(__x86_64__)
__attribute__((target("avx2,bmi,bmi2"), flatten)) Opinions opinions_avx2(const uint32_t* weights,
                                                                         uint8_t byte) {
  return opinions_of<Avx2Kernel>(weights, byte);
}
#endif

}  // namespace

Opinions network_opinions(const uint32_t* weights, uint8_t byte) {
#if defined(__x86_64__)
  if (active_kernel() >= Kernel::kAvx2) return opinions_avx2(weights, byte);
#endif
  return opinions_of<PortableKernel>(weights, byte);
}

size_t mixer_memory(const MixerParams& params, size_t raw_size, size_t lanes) {
  constexpr size_t kPlaces = size_t{2} << 24;  // of two match tables, 2^22 places of 4 bytes each
  constexpr size_t kSmall = size_t{24} << 20;  // refinements, weights, successors
  constexpr size_t kLane = size_t{1} << 13;
  return (size_t{1} << params.log2_memory) + raw_size + lanes * kLane +
         std::min(kPlaces, size_t{16} * (raw_size + 1024)) + kSmall;
}

Mixer::Mixer(const MixerParams& params, size_t raw_size, int lanes)
    : with_network_(params.with_network) {
  if (params.log2_memory < kMixerMinLog2Memory || params.log2_memory > kMixerMaxLog2Memory) {
    throw std::invalid_argument("mixer memory is 2^" + std::to_string(params.log2_memory) +
                                " bytes; expected 2^16 to 2^30");
  }
  if (lanes < 1) throw std::invalid_argument("a frame needs at least one lane");
  if (raw_size >> 30 != 0) throw std::invalid_argument("a mixed frame must be below 1 GiB");
  switch (params.profile) {
    case MixerProfile::kText:
      engine_ = make_text_engine(params, raw_size, lanes);
      return;
    case MixerProfile::kBinary:
      engine_ = make_binary_engine(params, raw_size, lanes);
      return;
    case MixerProfile::kStrong:
      engine_ = make_strong_engine(params, raw_size, lanes);
      return;
    case MixerProfile::kSample:
      engine_ = make_sample_engine(params, raw_size, lanes);
      return;
    case MixerProfile::kCode:
      engine_ = make_code_engine(params, raw_size, lanes);
      return;
  }
  throw std::invalid_argument("unknown mixer profile");
}
Mixer::~Mixer() = default;
Mixer::Mixer(Mixer&&) noexcept = default;
Mixer& Mixer::operator=(Mixer&&) noexcept = default;

void Mixer::encode_byte(int lane, uint8_t byte, const uint32_t* weights, RangeEncoder& encoder) {
  Opinions opinions;
  if (with_network_) opinions = network_opinions(weights, byte);
  engine_->encode(lane, byte, opinions, encoder);
}
void Mixer::encode_byte(int lane, uint8_t byte, const Opinions& opinions, RangeEncoder& encoder) {
  engine_->encode(lane, byte, opinions, encoder);
}
uint8_t Mixer::decode_byte(int lane, const uint32_t* weights, RangeDecoder& decoder) {
  return engine_->decode(lane, weights, decoder);
}
uint64_t Mixer::state_hash() const { return engine_->state_hash(); }

size_t lane_stride(size_t raw_size, int lanes) {
  const auto n = static_cast<size_t>(lanes);
  return std::max((raw_size + n - 1) / n, size_t{1});
}

std::vector<std::vector<uint8_t>> encode_frame_mixer(std::span<const uint8_t> raw, int lanes,
                                                     const MixerParams& params,
                                                     const uint32_t* weights, Interrupt interrupt) {
  Job job(1, std::move(interrupt));
  Mixer mixer(params, raw.size(), lanes);
  const size_t stride = lane_stride(raw.size(), lanes);
  std::vector<RangeEncoder> encoders(static_cast<size_t>(lanes));
  for (size_t t = 0; t < stride; ++t) {
    for (int lane = 0; lane < lanes; ++lane) {
      const size_t at = static_cast<size_t>(lane) * stride + t;
      if (at >= raw.size()) break;
      if (at % kCheckEvery == 0) job.check(0);
      mixer.encode_byte(lane, raw[at], weights == nullptr ? nullptr : weights + 256 * at,
                        encoders[static_cast<size_t>(lane)]);
    }
  }
  std::vector<std::vector<uint8_t>> payloads;
  for (RangeEncoder& encoder : encoders) payloads.push_back(encoder.finish());
  return payloads;
}

bool decode_frame_mixer(std::span<const std::span<const uint8_t>> payloads,
                        const MixerParams& params, std::span<uint8_t> raw, const uint32_t* weights,
                        Interrupt interrupt) {
  Job job(1, std::move(interrupt));
  const int lanes = static_cast<int>(payloads.size());
  Mixer mixer(params, raw.size(), lanes);
  const size_t stride = lane_stride(raw.size(), lanes);
  std::vector<RangeDecoder> decoders;
  for (const std::span<const uint8_t> payload : payloads) decoders.emplace_back(payload);
  for (size_t t = 0; t < stride; ++t) {
    for (int lane = 0; lane < lanes; ++lane) {
      const size_t at = static_cast<size_t>(lane) * stride + t;
      if (at >= raw.size()) break;
      RangeDecoder& decoder = decoders[static_cast<size_t>(lane)];
      if (at % kCheckEvery == 0) {
        job.check(0);
        // Damaged payloads often end early; there is no need to decode the rest of the frame then.
        if (decoder.truncated()) throw cut_short(static_cast<size_t>(lane));
      }
      raw[at] = mixer.decode_byte(lane, weights == nullptr ? nullptr : weights + 256 * at, decoder);
    }
  }
  bool exact = true;
  for (const RangeDecoder& decoder : decoders) exact &= decoder.end() == StreamEnd::kExact;
  return exact;
}

}  // namespace lmzip

// mixer.h: adaptive context mixing, bit by bit, over everything of a frame that is already decoded.
//
// The bytes of a frame are coded in lockstep: byte t of lane 0, 1, ..., then byte t + 1.  All lanes
// share every table; each has its own range coder.  Where a predictor stands before the mixer, each
// byte comes with its row of 256 weights, and their bit probabilities are one more input.  Integers
// only: the same bytes on every machine and with every kernel.  Specified in docs/mixer.md.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "parallel.h"
#include "range_coder.h"

namespace lmzip {

// Which set of context models is mixed.
enum class MixerProfile : uint8_t { kText = 0, kBinary = 1, kStrong = 2, kSample = 3, kCode = 4 };

inline constexpr int kMixerMinLog2Memory = 16;
inline constexpr int kMixerMaxLog2Memory = 30;

// What a network says of the bits of one byte, stretched: of the nodes 1 to 15 of its first nibble
// and, where that is known, of its second.
struct Opinions {
  std::array<std::array<int32_t, 16>, 2> nodes;
};

// weights: 256 numbers below 2^31, not all zero.
Opinions network_opinions(const uint32_t* weights, uint8_t byte);

// Everything that a decoder must know besides the payloads.
struct MixerParams {
  int log2_memory = 22;  // of the hash table, in bytes
  MixerProfile profile = MixerProfile::kText;
  bool with_network = false;
};

// Bytes that a mixer takes at most, the frame's decoded bytes included.
size_t mixer_memory(const MixerParams& params, size_t raw_size, size_t lanes);

class MixerEngine;

class Mixer {
 public:
  // raw_size bytes in `lanes` pieces of ceil(raw_size / lanes).  Throws std::invalid_argument.
  Mixer(const MixerParams& params, size_t raw_size, int lanes);
  ~Mixer();
  Mixer(Mixer&&) noexcept;
  Mixer& operator=(Mixer&&) noexcept;

  // Lanes must be called in the order of the lockstep, each for as many bytes as its piece has.
  // weights or what network_opinions() makes of them: read only with a network.
  void encode_byte(int lane, uint8_t byte, const uint32_t* weights, RangeEncoder& encoder);
  void encode_byte(int lane, uint8_t byte, const Opinions& opinions, RangeEncoder& encoder);
  uint8_t decode_byte(int lane, const uint32_t* weights, RangeDecoder& decoder);

  // A hash of everything that can influence later bytes: for tests.
  uint64_t state_hash() const;

 private:
  bool with_network_;
  std::unique_ptr<MixerEngine> engine_;
};

// Lane i of n bytes is [i * stride, min((i + 1) * stride, n)) with stride = ceil(n / lanes).
size_t lane_stride(size_t raw_size, int lanes);

// A whole frame: one payload for each lane.  weights: with a network, a row of 256 for each byte,
// in the order of the frame.  Throws what the interrupt throws.
std::vector<std::vector<uint8_t>> encode_frame_mixer(std::span<const uint8_t> raw, int lanes,
                                                     const MixerParams& params,
                                                     const uint32_t* weights = nullptr,
                                                     Interrupt interrupt = {});

// The inverse.  False if a payload is not the encoding of what was decoded from it; raw then holds
// whatever came out.  Any payloads are safe.  Throws CorruptError if one ends before its bytes do.
bool decode_frame_mixer(std::span<const std::span<const uint8_t>> payloads,
                        const MixerParams& params, std::span<uint8_t> raw,
                        const uint32_t* weights = nullptr, Interrupt interrupt = {});

}  // namespace lmzip

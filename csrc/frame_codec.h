// frame_codec.h: whole frames <-> payloads, with the network, the mixer, or both.
//
// A frame of n bytes and L lanes is cut into pieces of ceil(n / L) bytes, the last ones shorter or
// empty; each has its own range coder and payload.  Bytes are coded in lockstep: byte t of lane 0,
// 1, ..., then byte t + 1.  The network sees the lanes apart; the mixer learns from all of them in
// this order.  Payloads do not depend on the number of threads.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "exact_model.h"
#include "mixer.h"
#include "parallel.h"

namespace lmzip {

// As written in files: docs/format.md.
enum class Method { kNetwork = 1, kMixer = 2, kNetworkMixer = 3 };

inline constexpr size_t kMaxLanes = 65536;
inline constexpr size_t kMaxThreads = 256;

// Throw std::invalid_argument for numbers that no frame can have, and no work; no more threads than
// kMaxThreads are used.
void check_lanes(size_t lanes);
size_t checked_threads(size_t threads);

// Lane i of a frame of n bytes.
template <typename Byte>
std::span<Byte> lane_piece(std::span<Byte> raw, size_t lane, size_t lanes) {
  const size_t stride = (raw.size() + lanes - 1) / lanes;
  const size_t begin = std::min(lane * stride, raw.size());
  return raw.subspan(begin, std::min(stride, raw.size() - begin));
}

struct FrameParams {
  Method method;
  const ExactModel* model = nullptr;  // for the methods with a network
  int table_bits = 0;                 // for those with the mixer: log2 of its memory
  MixerProfile profile = MixerProfile::kText;
  size_t threads = 1;
  // Stages of the network when decoding; 0, or more than there are threads or layers: what suits
  // this CPU.
  size_t stages = 0;
};

using Payloads = std::vector<std::vector<uint8_t>>;

// 1 <= lanes <= kMaxLanes, here and below.  Throws std::invalid_argument for parameters that do not
// fit together, and what the interrupt throws.
Payloads encode_frame(const FrameParams& params, std::span<const uint8_t> raw, size_t lanes,
                      Interrupt interrupt = {});

// One payload for each lane.  Any payloads are safe; throws CorruptError if one of them is not the
// encoding of what was decoded from it.
void decode_frame(const FrameParams& params, std::span<const std::span<const uint8_t>> payloads,
                  std::span<uint8_t> raw, Interrupt interrupt = {});

// Threads that can be of use for a frame: no more are started.
size_t most_encoding_threads(Method method);
size_t most_decoding_threads(const FrameParams& params, size_t lanes);

// Bytes that decoding takes at most beside raw bytes, payloads and model, for any number of
// threads.
size_t frame_memory(const FrameParams& params, size_t raw_size, size_t lanes);

}  // namespace lmzip

// token_codec.h: whole frames <-> payloads, one token of a pretrained model at a time.
//
// A frame is a row of symbols, each a token or a raw byte behind an escape, that spell its bytes.
// It is cut into lanes of as many symbols (TokenLanes), each with a range coder and payload of its
// own.  The network sees the lanes apart; what all of them have said before is learned from
// (recall.h, token_choice.h).
// Specified in docs/format.md, method 5.  Payloads do not depend on the number of threads.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "frame_codec.h"  // Payloads
#include "llama_model.h"
#include "parallel.h"

namespace lmzip {

// The frame's symbols: tokens that have bytes, or vocabulary + b for the byte b.  Throws
// std::invalid_argument for any other symbol or no lanes, and what the interrupt throws.
Payloads encode_tokens(const LlamaModel& model, std::span<const uint32_t> symbols, size_t lanes,
                       size_t threads, Interrupt interrupt = {});

// How decoding shares lanes: each team has its own, which its threads take through the network
// together.
struct TokenTeams {
  size_t teams;
  size_t size;  // threads of a team, 1 to kMostTokenTeam

  size_t threads() const { return teams * size; }
};

inline constexpr size_t kMostTokenTeam = 4;  // memory is at its limit with fewer

// What is best for so many lanes and at most so many threads, at least one.
TokenTeams token_teams(size_t lanes, size_t threads, Kernel kernel);

// One payload for each lane, at least one.  Any payloads are safe; throws CorruptError if one of
// them is not the encoding of what was decoded from it.
void decode_tokens(const LlamaModel& model, std::span<const std::span<const uint8_t>> payloads,
                   std::span<uint8_t> raw, size_t threads, Interrupt interrupt = {});

// The same by these teams, of which each has a lane at least.
void decode_tokens(const LlamaModel& model, std::span<const std::span<const uint8_t>> payloads,
                   std::span<uint8_t> raw, TokenTeams teams, Interrupt interrupt = {});

// Threads that can be of use for decoding so many lanes: no more are started.
size_t most_token_threads(size_t lanes, Kernel kernel);

// Bytes that decoding takes at most beside raw bytes, payloads and model, for any number of threads
// and any kernel.
size_t token_memory(const LlamaModel& model, size_t raw_size, size_t lanes);

}  // namespace lmzip

// mixer_contexts.h: the contexts that the profiles are made of.  Specified in docs/mixer.md
// section 6.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>

#include "match_model.h"
#include "mixer_lane.h"

namespace lmzip {

enum class Context : uint32_t {
  kOrder1,
  kOrder2,
  kOrder3,
  kOrder4,
  kOrder6,
  kWord,
  kWordPair,
  kWordSkip,
  kKey,
  kAfterPair = 10,  // the number is in the hash
  kSparse2,
  kSparse3,
  kSparse4,
  kSparse23,
  kRecordAbove,
  kRecordColumn,
  kExpected,
  kCellAbove,
  kShape,
  kInstruction,
  kAfterTwo,
  kAfterTwoCodes,
  kAfterFourCodes,
  kAddress,
  kAfterOperand,
  kOpcode,
};

template <Context kind>
uint32_t context_hash(const Lane& lane, const SharedPast& past, const Match& match) {
  constexpr uint32_t kSeed = static_cast<uint32_t>(kind) * 0x3D4D51CBu + 1;
  const auto order = [&](int n) {
    const uint64_t bytes = lane.recent(n);
    return hash_of(static_cast<uint32_t>(bytes), static_cast<uint32_t>(bytes >> 32), kSeed);
  };
  const uint32_t c1 = lane.byte_back(1), c2 = lane.byte_back(2), c3 = lane.byte_back(3);
  const X86Decoder& x86 = lane.x86();
  const auto here = [&] { return hash_of(x86.code(), x86.operand(), x86.place()); };
  switch (kind) {
    case Context::kOrder1:
      return order(1);
    case Context::kOrder2:
      return order(2);
    case Context::kOrder3:
      return order(3);
    case Context::kOrder4:
      return order(4);
    case Context::kOrder6:
      return order(6);
    case Context::kWord:
      return hash_of(lane.word(), c1, kSeed);
    case Context::kWordPair:
      return hash_of(lane.word() + c1, lane.word_back(1), kSeed);
    case Context::kWordSkip:
      return hash_of(lane.word() + c1, lane.word_back(2), kSeed);
    case Context::kKey:
      return hash_of(lane.key(), lane.word() + c1, kSeed);
    case Context::kAfterPair:
      return hash_of(past.after_pair[lane.recent() & 0xffff], c1, kSeed);
    case Context::kSparse2:
      return hash_of(c2, 0, kSeed);
    case Context::kSparse3:
      return hash_of(c3, 0, kSeed);
    case Context::kSparse4:
      return hash_of(lane.byte_back(4), 0, kSeed);
    case Context::kSparse23:
      return hash_of(c2 | c3 << 8, 0, kSeed);
    case Context::kRecordAbove:
      return hash_of(lane.record_back(past), c1, kSeed);
    case Context::kRecordColumn:
      return hash_of(past.period == 0 ? c2 : lane.pos() % past.period + 256, lane.record_back(past),
                     kSeed);
    case Context::kCellAbove:
      return hash_of(lane.cell_above(past), lane.cell() << 8 | std::min(lane.cell_offset(), 255u),
                     kSeed);
    case Context::kShape:
      return hash_of(lane.shape(), c1, kSeed);
    case Context::kInstruction:
      return hash_of(here(), 0, kSeed);
    case Context::kAfterTwo:
      return hash_of(here(), hash_of(x86.before()[0], x86.before()[1]), kSeed);
    case Context::kAfterTwoCodes:
      return hash_of(here(), (x86.before()[0] & 0xffff) | x86.before()[1] << 16, kSeed);
    case Context::kAfterFourCodes:
      return hash_of(here(),
                     hash_of((x86.before()[0] & 0xffff) | x86.before()[1] << 16,
                             (x86.before()[2] & 0xffff) | x86.before()[3] << 16),
                     kSeed);
    case Context::kAddress:
      return hash_of(x86.place(), hash_of(x86.address(), x86.operand()), kSeed);
    case Context::kAfterOperand:
      return hash_of(here(), x86.last_operand(), kSeed);
    case Context::kOpcode:
      return hash_of(x86.place() | x86.opcode() << 8, x86.before()[0], kSeed);
    case Context::kExpected:
      return hash_of(static_cast<uint32_t>(match.expected + 1),
                     match.expected < 0 ? c1 : MatchModel::trust(match) / 8, kSeed);
  }
}

// The profiles; kExpected, which needs the match of the byte to come, is last.  kSamples: whether
// the contexts of sample_model.h follow.
// kCode: whether lanes follow x86 instructions.
struct TextProfile {
  static constexpr bool kSamples = false;
  static constexpr bool kCode = false;
  static constexpr Context kContexts[] = {
      Context::kOrder1, Context::kOrder2,    Context::kOrder3,   Context::kOrder4,
      Context::kOrder6, Context::kWord,      Context::kWordPair, Context::kAfterPair,
      Context::kShape,  Context::kCellAbove, Context::kExpected,
  };
};
struct BinaryProfile {
  static constexpr bool kSamples = false;
  static constexpr bool kCode = false;
  static constexpr Context kContexts[] = {
      Context::kOrder1,  Context::kOrder2,      Context::kOrder3,       Context::kOrder4,
      Context::kOrder6,  Context::kSparse2,     Context::kSparse3,      Context::kSparse23,
      Context::kSparse4, Context::kRecordAbove, Context::kRecordColumn, Context::kExpected,
  };
};
// x86 code, in frames whose targets are absolute: x86_targets.h.
struct CodeProfile {
  static constexpr bool kSamples = false;
  static constexpr bool kCode = true;
  static constexpr Context kContexts[] = {
      Context::kOrder1,   Context::kOrder2,        Context::kOrder3,
      Context::kOrder4,   Context::kSparse3,       Context::kSparse23,
      Context::kSparse4,  Context::kRecordColumn,  Context::kInstruction,
      Context::kAfterTwo, Context::kAfterTwoCodes, Context::kAfterFourCodes,
      Context::kAddress,  Context::kAfterOperand,  Context::kOpcode,
      Context::kExpected,
  };
};
// For use beside a network, which knows the low orders better.
struct StrongProfile {
  static constexpr bool kSamples = false;
  static constexpr bool kCode = false;
  static constexpr Context kContexts[] = {
      Context::kOrder3,   Context::kOrder6,    Context::kWord,
      Context::kWordPair, Context::kWordSkip,  Context::kKey,
      Context::kShape,    Context::kCellAbove, Context::kExpected,
  };
};
struct SampleProfile {
  static constexpr bool kSamples = true;
  static constexpr bool kCode = false;
  static constexpr Context kContexts[] = {Context::kOrder2, Context::kOrder3, Context::kExpected};
};

}  // namespace lmzip

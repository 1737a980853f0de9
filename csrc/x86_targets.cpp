// x86_targets.cpp: see x86_targets.h.
//
// A step at a place changes the four bytes of an operand and reads, beside them, only bytes before
// them, and it can be undone.  So all steps in one order are undone by their inverses in the other,
// whatever the bytes are and however operands overlap.
#include "x86_targets.h"

#include <cstddef>

namespace lmzip {
namespace {

constexpr uint32_t kRange = 1u << 25;  // targets: 24 bits and a sign

// Where the operand of the instruction at p begins, 0 if it has none that is changed: E8 CALL, E9
// JMP, 0F 8x Jcc; CMP, MOV, LEA relative to RIP (REX.W, opcode, ModRM with mod 0, r/m 5).
size_t operand_offset(const uint8_t* p) {
  if ((p[0] & 0xFE) == 0xE8) return 1;
  if (p[0] == 0x0F) return (p[1] & 0xF0) == 0x80 ? 2 : 0;
  if ((p[0] & 0xFB) != 0x48 || (p[2] & 0xC7) != 0x05) return 0;
  switch (p[1]) {
    case 0x39:
    case 0x3B:
    case 0x89:
    case 0x8B:
    case 0x8D:
      return 3;
    default:
      return 0;
  }
}
constexpr size_t kLongest = 7;  // opcode, ModRM and operand

bool extends_sign(uint8_t byte) { return byte == 0 || byte == 0xFF; }

uint32_t load_le(const uint8_t* p) {
  return p[0] | uint32_t{p[1]} << 8 | uint32_t{p[2]} << 16 | uint32_t{p[3]} << 24;
}
void store_le(uint8_t* p, uint32_t x) {
  for (int i = 0; i < 4; ++i) p[i] = static_cast<uint8_t>(x >> 8 * i);
}
uint32_t load_be(const uint8_t* p) {
  return uint32_t{p[0]} << 24 | uint32_t{p[1]} << 16 | uint32_t{p[2]} << 8 | p[3];
}

// The number congruent to x modulo kRange in [-kRange / 2, kRange / 2).
uint32_t wrap(uint32_t x) {
  x &= kRange - 1;
  return x & kRange / 2 ? x | ~(kRange - 1) : x;
}

void reverse(uint8_t* p) { store_le(p, load_be(p)); }

// Numbers whose last byte extends the sign become numbers whose first does; those of which the
// reverse is true take their place.
void to_absolute(uint8_t* p, uint32_t end) {
  if (extends_sign(p[3])) {
    store_le(p, wrap(load_le(p) + end));
    reverse(p);
  } else if (extends_sign(p[0])) {
    reverse(p);
  }
}

void to_relative(uint8_t* p, uint32_t end) {
  if (extends_sign(p[0])) {
    store_le(p, wrap(load_be(p) - end));
  } else if (extends_sign(p[3])) {
    reverse(p);
  }
}

}  // namespace

void x86_to_absolute(std::span<uint8_t> bytes) {
  if (bytes.size() < kLongest) return;
  for (size_t i = bytes.size() - kLongest + 1; i-- > 0;) {
    const size_t at = i + operand_offset(&bytes[i]);
    if (at != i) to_absolute(&bytes[at], static_cast<uint32_t>(at + 4));
  }
}

void x86_to_relative(std::span<uint8_t> bytes) {
  if (bytes.size() < kLongest) return;
  for (size_t i = 0; i + kLongest <= bytes.size(); ++i) {
    const size_t at = i + operand_offset(&bytes[i]);
    if (at != i) to_relative(&bytes[at], static_cast<uint32_t>(at + 4));
  }
}

}  // namespace lmzip

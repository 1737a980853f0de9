// x86_targets.h: targets of calls and jumps, and addresses of data, relative <-> absolute.
//
// Calls of one function from everywhere have different displacements but one target, so the mixer
// predicts targets better.  A bijection of all strings of bytes, in place.  Specified in
// docs/format.md section 5.
#pragma once
#include <cstdint>
#include <span>

namespace lmzip {

void x86_to_absolute(std::span<uint8_t> bytes);
void x86_to_relative(std::span<uint8_t> bytes);  // the inverse

}  // namespace lmzip

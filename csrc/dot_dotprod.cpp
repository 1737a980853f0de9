// dot_dotprod.cpp: dot.h for AArch64 with SDOT.
#include "dot_neon_impl.h"

namespace lmzip {
namespace {

struct Sdot {
  using Sum = int32x4_t;
  static void add(Sum& sum, int8x16_t weights, int8x16_t value) {
    sum = vdotq_s32(sum, weights, value);
  }
  static int32x4_t total(Sum sum) { return sum; }
};

}  // namespace

const DotKernel kDotDotprod = {NeonDot<Sdot>::pack, NeonDot<Sdot>::multiply};

}  // namespace lmzip

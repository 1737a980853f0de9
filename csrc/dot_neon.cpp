// dot_neon.cpp: dot.h for every AArch64: SMULL to 16 bits, then SADALP to 32.
#include "dot_neon_impl.h"

namespace lmzip {
namespace {

struct Widening {
  // For each of four outputs the sums of its first and of its second two products.
  struct Sum {
    int32x4_t low, high;
  };
  // 2 * 128 * 128 does not fit in 16 bits, but vpadalq_s16 adds the two in 32.
  static void add(Sum& sum, int8x16_t weights, int8x16_t value) {
    sum.low = vpadalq_s16(sum.low, vmull_s8(vget_low_s8(weights), vget_low_s8(value)));
    sum.high = vpadalq_s16(sum.high, vmull_high_s8(weights, value));
  }
  static int32x4_t total(const Sum& sum) { return vpaddq_s32(sum.low, sum.high); }
};

}  // namespace

const DotKernel kDotNeon = {NeonDot<Widening>::pack, NeonDot<Widening>::multiply};

}  // namespace lmzip

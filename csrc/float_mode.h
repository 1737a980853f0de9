// float_mode.h: the floating-point mode that docs/numerics.md section 8 asks for, while in scope:
// round to nearest even, nothing flushed to zero.  Other libraries may have left another one.
#pragma once
#include <cfenv>
#include <cfloat>
#include <cstdint>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace lmzip {

static_assert(FLT_EVAL_METHOD == 0, "float arithmetic must not keep excess precision");

class FloatMode {
 public:
  FloatMode() : saved_(read()) { write(kDefault); }
  ~FloatMode() { write(saved_); }
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
#if defined(__x86_64__)
  using Register = unsigned;
  static constexpr Register kDefault = 0x1F80;  // MXCSR: all exceptions masked
  static Register read() { return _mm_getcsr(); }
  static void write(Register mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
  using Register = uint64_t;
  static constexpr Register kDefault = 0;  // FPCR
  static Register read() {
    Register mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void write(Register mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
  using Register = int;
  static constexpr Register kDefault = FE_TONEAREST;
  static Register read() { return std::fegetround(); }
  static void write(Register mode) { std::fesetround(mode); }
#endif

  Register saved_;
};

}  // namespace lmzip

// cpu.h: which kernels this machine can run, and which of them is forced.
//
// A kernel is a name ("portable", "avx2", "avxvnni", "avx512", "vnni", "amx", "neon", "dotprod"): a
// level of instruction sets for which some operation has a file of its own.  Every kernel of an
// operation gives the same answer; an operation without a file for the active kernel takes its next
// lower one, so a ladder of `if (kernel >= Kernel::kAvx2) ...` ending in portable is all the
// dispatch there is.
#pragma once
#include <cstddef>
#include <string_view>
#include <vector>

namespace lmzip {

// Ordered within an architecture: a machine that can run a kernel can run those of its family
// below, but for kAvxVnni, which is a branch of its own: ask for it by ==, not by >=.
enum class Kernel : int {
  kPortable = 0,
  // x86-64
  kAvx2 = 10,     // AVX2, BMI2, F16C
  kAvxVnni = 11,  // + AVX-VNNI, the 256-bit form
  kAvx512 = 12,   // kAvx2 + AVX-512 F, BW, DQ, VL
  kVnni = 13,     // + AVX-512 VNNI
  kAmx = 14,      // + AMX INT8
  // AArch64
  kNeon = 20,     // always there
  kDotprod = 21,  // + SDOT
};

// The name, as in LMZIP_KERNEL.
std::string_view kernel_name(Kernel kernel);

// The kernels that this machine can run, portable first, the best last.
const std::vector<Kernel>& usable_kernels();

// The kernel in force: set_active_kernel()'s, else LMZIP_KERNEL's, else the best usable one.
// Throws UnsupportedError if LMZIP_KERNEL names no kernel or one that cannot run here.
Kernel active_kernel();

// Forces a kernel by name for the whole process; "" goes back to LMZIP_KERNEL or the best one.
// Throws as active_kernel() does.
void set_active_kernel(std::string_view name);

// Bytes of a core's level 2 cache, which it may share with others; 0 where that cannot be known.
size_t level_2_cache();

}  // namespace lmzip

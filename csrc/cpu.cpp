// cpu.cpp: see cpu.h.  Detection goes through the compiler's __builtin_cpu_supports, which also
// asks the operating system whether it saves the wide registers.
#include "cpu.h"

#include <atomic>
#include <cstdlib>
#include <string>

#include "errors.h"

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace lmzip {
namespace {

struct Named {
  Kernel kernel;
  std::string_view name;
};
constexpr Named kNames[] = {
    {Kernel::kPortable, "portable"}, {Kernel::kAvx2, "avx2"},       {Kernel::kAvxVnni, "avxvnni"},
    {Kernel::kAvx512, "avx512"},     {Kernel::kVnni, "vnni"},       {Kernel::kAmx, "amx"},
    {Kernel::kNeon, "neon"},         {Kernel::kDotprod, "dotprod"},
};

#if defined(__x86_64__)
// Older compilers do not know the name "f16c".
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

// Nor "avxvnni".
bool has_avx_vnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & 1u << 4) != 0;
}

// Nor "amx-int8".  Linux gives a process its tiles only when asked, for all its threads and its
// children, since they make a signal's frame 8 KiB larger: it refuses where a signal stack is too
// small for that, and refuses such stacks from then on.  So nobody asks where LMZIP_KERNEL wants
// something else.
bool may_use_amx() {
#if defined(__linux__)
  const char* forced = std::getenv("LMZIP_KERNEL");
  if (forced != nullptr && *forced != '\0' && std::string_view(forced) != "amx") return false;
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kTile) != 0 && (d & kInt8) != 0 &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

std::vector<Kernel> detect() {
  std::vector<Kernel> found = {Kernel::kPortable};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("bmi2") || !has_f16c())
    return found;
  found.push_back(Kernel::kAvx2);
  if (has_avx_vnni()) found.push_back(Kernel::kAvxVnni);
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return found;
  }
  found.push_back(Kernel::kAvx512);
  if (!__builtin_cpu_supports("avx512vnni")) return found;
  found.push_back(Kernel::kVnni);
  if (may_use_amx()) found.push_back(Kernel::kAmx);
#elif defined(__aarch64__)
  found.push_back(Kernel::kNeon);
#if defined(__linux__)
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) found.push_back(Kernel::kDotprod);
#endif
#endif
  return found;
}

std::string usable_names() {
  std::string names;
  for (const Kernel kernel : usable_kernels()) {
    if (!names.empty()) names += ", ";
    names += kernel_name(kernel);
  }
  return names;
}

Kernel by_name(std::string_view name) {
  for (const Kernel kernel : usable_kernels()) {
    if (kernel_name(kernel) == name) return kernel;
  }
  throw UnsupportedError(
      "kernel \"" + std::string(name) +
      "\" (LMZIP_KERNEL) is unknown or cannot run here; usable: " + usable_names());
}

Kernel default_kernel() {
  const char* forced = std::getenv("LMZIP_KERNEL");
  return forced == nullptr || *forced == '\0' ? usable_kernels().back() : by_name(forced);
}

std::atomic<int>& active_slot() {
  static std::atomic<int> slot{-1};  // -1: not asked yet
  return slot;
}

}  // namespace

std::string_view kernel_name(Kernel kernel) {
  for (const Named& named : kNames) {
    if (named.kernel == kernel) return named.name;
  }
  return "unknown";
}

const std::vector<Kernel>& usable_kernels() {
  static const std::vector<Kernel> kernels = detect();
  return kernels;
}

Kernel active_kernel() {
  int value = active_slot().load(std::memory_order_relaxed);
  if (value < 0) {
    value = static_cast<int>(default_kernel());
    active_slot().store(value, std::memory_order_relaxed);
  }
  return static_cast<Kernel>(value);
}

void set_active_kernel(std::string_view name) {
  const Kernel kernel = name.empty() ? default_kernel() : by_name(name);
  active_slot().store(static_cast<int>(kernel), std::memory_order_relaxed);
}

size_t level_2_cache() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return bytes > 0 ? static_cast<size_t>(bytes) : 0;
#else
  return 0;
#endif
}

}  // namespace lmzip

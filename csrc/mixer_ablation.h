// mixer_ablation.h: parts of the mixer that can be switched off, for measurements only; contexts
// are left out by compiling again (bench/mixer_ablation.py).
//
// Built with LMZIP_MIXER_ABLATION, the environment variable LMZIP_DROP holds names of parts,
// separated by commas, that are left out (bench/native/mixer_bench.cpp); otherwise ablated() is
// false at compile time.
#pragma once
#ifdef LMZIP_MIXER_ABLATION
#include <cstdlib>
#include <string>
#endif

namespace lmzip {

#ifdef LMZIP_MIXER_ABLATION
inline bool ablated(const char* part) {
  const char* dropped = std::getenv("LMZIP_DROP");
  if (dropped == nullptr) return false;
  return ("," + std::string(dropped) + ",").find("," + std::string(part) + ",") !=
         std::string::npos;
}
#else
constexpr bool ablated(const char*) { return false; }
#endif

}  // namespace lmzip

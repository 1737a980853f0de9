#pragma once
// MTUNE(name, value): a constant; in the research build it can be set from the command line.
#ifdef LMZIP_MIXER_RESEARCH
#include <cstdlib>
#define MTUNE(name, value)                                                             \
  ([] {                                                                                \
    static const int v = std::getenv(#name) ? std::atoi(std::getenv(#name)) : (value); \
    return v;                                                                          \
  }())
#else
#define MTUNE(name, value) (value)
#endif

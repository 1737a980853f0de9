// mixer_strong.cpp: the engines of the profile "strong".
#include "mixer_engine.h"

namespace lmzip {

std::unique_ptr<MixerEngine> make_strong_engine(const MixerParams& params, size_t raw_size,
                                                int lanes) {
  return make_engine<StrongProfile>(params, raw_size, lanes);
}

}  // namespace lmzip

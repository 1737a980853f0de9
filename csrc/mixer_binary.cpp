// mixer_binary.cpp: the engines of the profile "binary".
#include "mixer_engine.h"

namespace lmzip {

std::unique_ptr<MixerEngine> make_binary_engine(const MixerParams& params, size_t raw_size,
                                                int lanes) {
  return make_engine<BinaryProfile>(params, raw_size, lanes);
}

}  // namespace lmzip

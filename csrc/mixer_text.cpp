// mixer_text.cpp: the engines of the profile "text".
#include "mixer_engine.h"

namespace lmzip {

std::unique_ptr<MixerEngine> make_text_engine(const MixerParams& params, size_t raw_size,
                                              int lanes) {
  return make_engine<TextProfile>(params, raw_size, lanes);
}

}  // namespace lmzip

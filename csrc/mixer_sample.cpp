// mixer_sample.cpp: the engines of the profile "sample".
#include "mixer_engine.h"

namespace lmzip {

std::unique_ptr<MixerEngine> make_sample_engine(const MixerParams& params, size_t raw_size,
                                                int lanes) {
  return make_engine<SampleProfile>(params, raw_size, lanes);
}

}  // namespace lmzip

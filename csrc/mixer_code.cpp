// mixer_code.cpp: the engine of the profile "code", which goes without a network.
#include <stdexcept>

#include "mixer_engine.h"

namespace lmzip {

std::unique_ptr<MixerEngine> make_code_engine(const MixerParams& params, size_t raw_size,
                                              int lanes) {
  if (params.with_network) throw std::invalid_argument("the profile code goes without a network");
  return std::make_unique<Engine<CodeProfile, false>>(params, raw_size, lanes);
}

}  // namespace lmzip

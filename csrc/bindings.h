// bindings.h: one function per area, each in its own py_*.cpp, all called by py_module.cpp.
#pragma once
#include <pybind11/pybind11.h>

#include <string>

#include "mixer.h"

namespace lmzip {

void bind_coder(pybind11::module_& m);
void bind_engine(pybind11::module_& m);
void bind_llama(pybind11::module_& m);
void bind_lockstep(pybind11::module_& m);
void bind_mixer(pybind11::module_& m);

// By its name.  Throws std::invalid_argument.
MixerProfile mixer_profile(const std::string& name);

}  // namespace lmzip

// py_model.h: what the bindings of the two kinds of models share.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "errors.h"
#include "parallel.h"
#include "tensors.h"

namespace lmzip {

// Of an architecture as Python gives it.
template <typename T>
T field(const pybind11::dict& d, const char* name) {
  if (!d.contains(name)) throw UnsupportedError(std::string("architecture: no ") + name);
  const pybind11::object value = d[name];
  try {
    return value.cast<T>();
  } catch (const pybind11::cast_error&) {
    throw UnsupportedError(std::string("architecture: ") + name +
                           " has a value of the wrong type or size: " +
                           pybind11::str("{!a:.40}").format(value).cast<std::string>());
  }
}

// NumPy arrays by name, alive until the model has copied them.
class ArrayTensors {
 public:
  explicit ArrayTensors(const pybind11::dict& arrays) {
    for (const auto& [name, value] : arrays) {
      const auto array = pybind11::array::ensure(value, pybind11::array::c_style);
      if (!array) throw std::invalid_argument("tensors must be NumPy arrays");
      kept_.push_back(array);
      views_[name.cast<std::string>()] = {
          pybind11::str(array.dtype()).cast<std::string>(),
          std::vector<size_t>(array.shape(), array.shape() + array.ndim()), array.data()};
    }
  }
  const Tensors& views() const { return views_; }

 private:
  Tensors views_;
  std::vector<pybind11::array> kept_;
};

// Lets Ctrl-C through; called without the GIL.
inline void check_signals() {
  const pybind11::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
}

// Lets through besides what `raise` raises: a callable that outlives the work, or None.
inline Interrupt interrupt_by(pybind11::handle raise) {
  return [raise] {
    check_signals();
    const pybind11::gil_scoped_acquire acquire;
    if (!raise.is_none()) raise();
  };
}

}  // namespace lmzip

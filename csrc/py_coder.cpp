// py_coder.cpp: kernels, range coder and distributions for Python.
#include <pybind11/stl.h>

#include <string>

#include "bindings.h"
#include "cpu.h"

namespace py = pybind11;

namespace lmzip {

void bind_coder(py::module_& m) {
  m.def("kernels", [] {
    std::vector<std::string> names;
    for (const Kernel kernel : usable_kernels()) names.emplace_back(kernel_name(kernel));
    return names;
  });
  m.def("active_kernel", [] { return std::string(kernel_name(active_kernel())); });
  m.def("set_active_kernel", [](const std::string& name) { set_active_kernel(name); });
}

}  // namespace lmzip

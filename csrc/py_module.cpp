// py_module.cpp: the extension module lmzip._core.  Its Python face is python/lmzip/_core.pyi.
#include "bindings.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The native core of lmzip. Use the lmzip package; this module's names may change.";
  lmzip::bind_coder(m);
}

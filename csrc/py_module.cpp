// py_module.cpp: the extension module lmzip._core.  Its Python face is python/lmzip/_core.pyi.
#include "bindings.h"
#include "errors.h"

namespace py = pybind11;

namespace {

void raise(const char* class_name, const std::exception& error) {
  const py::object type = py::module_::import("lmzip.errors").attr(class_name);
  PyErr_SetString(type.ptr(), error.what());
}

void translate_errors() {
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const lmzip::DistributionError& error) {
      raise("DistributionError", error);
    } catch (const lmzip::TruncatedError& error) {
      raise("TruncatedError", error);
    } catch (const lmzip::CorruptError& error) {
      raise("CorruptError", error);
    } catch (const lmzip::UnsupportedError& error) {
      raise("UnsupportedError", error);
    } catch (const lmzip::LimitError& error) {
      raise("LimitError", error);
    }
  });
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The native core of lmzip. Use the lmzip package; this module's names may change.";
  translate_errors();
  lmzip::bind_coder(m);
  lmzip::bind_engine(m);
  lmzip::bind_llama(m);
  lmzip::bind_lockstep(m);
  lmzip::bind_mixer(m);
}

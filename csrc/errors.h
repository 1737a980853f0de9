// errors.h: the errors that the core reports to Python, one class per fate; py_module.cpp turns
// each into the class of the same name in lmzip.errors.  Hot loops do not throw: they return a
// status.
#pragma once
#include <cstddef>
#include <stdexcept>
#include <string>

namespace lmzip {

// Probabilities, symbols or shapes that cannot be coded.
struct DistributionError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// The input ends before the data that was asked of it.
struct TruncatedError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The input is damaged.
struct CorruptError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The same: a payload of a frame has fewer bytes than what is decoded from it needs.
inline CorruptError cut_short(size_t lane) {
  return CorruptError("the payload of lane " + std::to_string(lane) +
                      " ends before its bytes do; the file is damaged");
}

// Sound, but needs a newer version or a feature that is not built in.
struct UnsupportedError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A limit of the caller, or of the system, would be passed.
struct LimitError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace lmzip

// tensors.h: the tensors of a model file, by name, and how models look them up.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "aligned.h"
#include "errors.h"

namespace lmzip {

struct Tensor {
  std::string dtype;  // as NumPy calls it: int8, uint8, int16, uint16, int32, uint32, float32
  std::vector<size_t> shape;
  const void* data;  // contiguous, native byte order
};
using Tensors = std::map<std::string, Tensor>;

template <typename T>
constexpr const char* kDtype = nullptr;
template <>
inline constexpr const char* kDtype<int8_t> = "int8";
template <>
inline constexpr const char* kDtype<uint8_t> = "uint8";
template <>
inline constexpr const char* kDtype<int16_t> = "int16";
template <>
inline constexpr const char* kDtype<uint16_t> = "uint16";
template <>
inline constexpr const char* kDtype<int32_t> = "int32";
template <>
inline constexpr const char* kDtype<uint32_t> = "uint32";
template <>
inline constexpr const char* kDtype<float> = "float32";

// Holds tensors against what the architecture promises.  All throw CorruptError.
class TensorReader {
 public:
  explicit TensorReader(const Tensors& tensors) : tensors_(tensors) {}

  template <typename T>
  const T* get(const std::string& name, const std::vector<size_t>& shape) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw CorruptError("model: the tensor " + name + " is missing");
    const Tensor& t = found->second;
    if (t.dtype != kDtype<T> || t.shape != shape) {
      throw CorruptError("model: " + name + " is " + t.dtype + " " + text(t.shape) + ", expected " +
                         kDtype<T> + " " + text(shape));
    }
    return static_cast<const T*>(t.data);
  }

  // All values within [low, high]; NaN is not.
  template <typename T>
  const T* get(const std::string& name, const std::vector<size_t>& shape, T low, T high) const {
    const T* values = get<T>(name, shape);
    size_t size = 1;
    for (const size_t n : shape) size *= n;
    const bool fits =
        std::all_of(values, values + size, [=](T value) { return low <= value && value <= high; });
    if (!fits) throw CorruptError("model: " + name + " has values outside the range allowed");
    return values;
  }

  template <typename T>
  AlignedArray<T> copy(const std::string& name, size_t size, T low, T high) const {
    AlignedArray<T> out(size);
    std::copy_n(get<T>(name, {size}, low, high), size, out.data());
    return out;
  }

 private:
  static std::string text(const std::vector<size_t>& shape) {
    std::string text = "(";
    for (const size_t n : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
    return text + ")";
  }

  const Tensors& tensors_;
};

}  // namespace lmzip

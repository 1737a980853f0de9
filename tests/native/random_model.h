// random_model.h: the models of tests/random_model.py, number for number, for programs without
// Python.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "exact_model.h"

namespace lmzip::test {

// Splitmix64 of seed, tensor and place.
inline uint64_t place_hash(uint64_t seed, uint64_t tensor, uint64_t place) {
  uint64_t z = seed * 0x9E3779B97F4A7C15 + tensor * 0xD1B54A32D192ED03 + place * 0x8CB92BA72F3D8DD7;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

class RandomModel {
 public:
  RandomModel(const Architecture& architecture, uint64_t seed) : a_(architecture), seed_(seed) {
    list_tensors();
    uint64_t index = 0;
    for (auto& [name, tensor] : tensors_) fill(name, index++, tensor);
  }
  ExactModel model() const { return ExactModel(a_, tensors_); }

 private:
  void list_tensors() {
    const size_t d = a_.d_model, heads = a_.n_heads * a_.head_dim;
    add("embedding.byte", "int8", {256, d});
    add("embedding.shift", "int32", {1 + a_.ngrams.size()});
    for (size_t i = 0; i < a_.ngrams.size(); ++i) {
      add("embedding.ngram." + std::to_string(i), "int8",
          {size_t{1} << a_.ngrams[i].log2_slots, a_.ngrams[i].width});
    }
    for (size_t i = 0; i < a_.n_layers; ++i) {
      const std::string prefix = "layers." + std::to_string(i);
      add_product(prefix + ".qkv", heads + 2 * a_.n_kv_heads * a_.head_dim, d);
      add_product(prefix + ".out", d, heads);
      add_product(prefix + ".up", a_.d_ff, d);
      add_product(prefix + ".down", d, a_.d_ff);
      add(prefix + ".softmax", "int32", {a_.n_heads});
    }
    add_product("head", 256, d);
    add("rotary.frequency", "uint32", {a_.head_dim / 2});
    add("rotary.cosine", "int16", {4096});
  }

  void add(const std::string& name, const char* dtype, const std::vector<size_t>& shape) {
    tensors_[name] = {dtype, shape, nullptr};
  }

  void add_product(const std::string& name, size_t outputs, size_t inputs) {
    add(name + ".weight", "int8", {outputs, inputs});
    add(name + ".scale", "float32", {outputs});
  }

  void fill(const std::string& name, uint64_t index, Tensor& tensor) {
    size_t size = 1;
    for (const size_t n : tensor.shape) size *= n;
    std::vector<uint8_t>& bytes = storage_[name];
    bytes.resize(size * (tensor.dtype == "int8" ? 1 : tensor.dtype == "int16" ? 2 : 4));
    for (size_t i = 0; i < size; ++i) {
      const uint64_t hash = place_hash(seed_, index, i);
      if (tensor.dtype == "int8") {
        put(bytes, i, weight(hash));
      } else if (tensor.dtype == "int16") {
        put(bytes, i,
            static_cast<int16_t>(
                std::lrint(16384 * std::cos(2 * M_PI * static_cast<double>(i) / 4096))));
      } else if (tensor.dtype == "float32") {
        put(bytes, i, std::ldexp(static_cast<float>(128 + (hash & 127)), scale_exponent(name, i)));
      } else {
        put(bytes, i, word(name, i, hash));
      }
    }
    tensor.data = bytes.data();
  }

  template <typename T>
  static void put(std::vector<uint8_t>& bytes, size_t i, T value) {
    std::memcpy(bytes.data() + i * sizeof(T), &value, sizeof(T));
  }

  static int8_t weight(uint64_t hash) {
    int total = -510;
    for (int i = 0; i < 4; ++i) total += static_cast<int>(hash >> (8 * i) & 255);
    const int value = total * 70 >> 8;
    return static_cast<int8_t>(value < -127 ? -127 : value > 127 ? 127 : value);
  }

  uint32_t word(const std::string& name, size_t i, uint64_t hash) const {
    if (name == "embedding.shift") return i == 0 ? 6 : 5;
    if (name == "rotary.frequency") return 683565276u >> (10 * i / (a_.head_dim / 2));
    const uint64_t factor = 1280u >> (std::bit_width(a_.head_dim) / 2);
    return static_cast<uint32_t>(factor * (128 + (hash & 127)) / 192);
  }

  int scale_exponent(const std::string& name, size_t output) const {
    const size_t heads = a_.n_heads * a_.head_dim;
    const auto is = [&](const char* product) { return name.find(product) != std::string::npos; };
    const int base = is("qkv") ? -8 : is("out") ? -21 : is("up") ? -6 : is("down") ? -23 : -1;
    const size_t inputs = is("out") ? heads : is("down") ? a_.d_ff : a_.d_model;
    const bool value = is("qkv") && output >= heads + a_.n_kv_heads * a_.head_dim;
    return base - static_cast<int>(std::bit_width(inputs)) / 2 + (value ? 1 : 0);
  }

  Architecture a_;
  uint64_t seed_;
  Tensors tensors_;
  std::map<std::string, std::vector<uint8_t>> storage_;
};

}  // namespace lmzip::test

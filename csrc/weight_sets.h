// weight_sets.h: the weight vectors of one mixer, of which a context selects one for each bit.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace lmzip {

class WeightSets {
 public:
  // inputs: a multiple of 8, so that every set is aligned for the kernels.
  WeightSets(size_t sets, size_t inputs, int32_t initial)
      : inputs_(inputs), size_(sets * inputs), storage_(size_ + kAlign, initial) {
    base_ = storage_.data();
    while (reinterpret_cast<uintptr_t>(base_) % (4 * kAlign) != 0) ++base_;
  }
  WeightSets(const WeightSets&) = delete;
  WeightSets& operator=(const WeightSets&) = delete;

  // The same initial weight in every set for one input.
  void fill_input(size_t input, int32_t weight) {
    for (size_t i = input; i < size_; i += inputs_) base_[i] = weight;
  }
  int32_t* set(size_t i) { return base_ + i * inputs_; }
  std::span<const int32_t> all() const { return {base_, size_}; }

 private:
  static constexpr size_t kAlign = 8;

  size_t inputs_;
  size_t size_;
  std::vector<int32_t> storage_;
  int32_t* base_;
};

}  // namespace lmzip

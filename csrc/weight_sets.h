// weight_sets.h: the weight vectors of one mixer, of which a context selects one for each bit.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "aligned.h"

namespace lmzip {

template <typename Weight, size_t kInputs>
class WeightSets {
 public:
  static_assert(kInputs * sizeof(Weight) % 32 == 0, "every set is aligned for the kernels");

  WeightSets(size_t sets, Weight initial) : weights_(sets * kInputs) {
    for (size_t i = 0; i < weights_.size(); ++i) weights_[i] = initial;
  }

  // The same initial weight in every set for one input.
  void fill_input(size_t input, Weight weight) {
    for (size_t i = input; i < weights_.size(); i += kInputs) weights_[i] = weight;
  }
  Weight* set(size_t i) { return weights_.data() + i * kInputs; }
  [[gnu::always_inline]] void prefetch(size_t i) const {
    __builtin_prefetch(weights_.data() + i * kInputs);
  }
  std::span<const Weight> all() const { return {weights_.data(), weights_.size()}; }

 private:
  AlignedArray<Weight> weights_;
};

}  // namespace lmzip

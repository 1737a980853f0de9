// exact_model.h: a transformer of docs/numerics.md, its weights packed for the kernels of this CPU.
//
// In: the tensors of a model file, by name.  Out: an ExactModel whose every size has been checked,
// so that an Engine can trust it.  Nothing here is ever changed after construction; any number of
// engines and threads may share one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "aligned.h"
#include "dot.h"
#include "stages.h"
#include "tensors.h"

namespace lmzip {

struct NgramTable {
  size_t order, log2_slots, offset, width;
};

// Names as in docs/numerics.md section 2.
struct Architecture {
  size_t d_model, n_layers, n_heads, n_kv_heads, head_dim, d_ff;
  std::vector<size_t> windows;  // (n_layers)
  std::vector<NgramTable> ngrams;
};

struct Matrix {
  Input input = Input::kInt8;
  size_t outputs = 0, inputs = 0;
  int8_t* packed = nullptr;  // in the model's arena
  AlignedArray<int32_t> row_sums;
  bool from_memory = false;

  MatrixView view() const { return part(0, outputs); }
  // Outputs begin..end, multiples of kOutputStep; their sums go to out + begin.
  MatrixView part(size_t begin, size_t end) const {
    return {
        input,      end - begin, outputs, inputs, packed + begin * inputs, row_sums.data() + begin,
        from_memory};
  }
};

// Products and the scale of each output.
struct Product {
  Matrix weight;
  AlignedArray<float> scale;  // (weight.outputs)
};

struct Layer {
  size_t window;
  Product qkv, out, up, down;
  std::vector<int32_t> softmax;  // (n_heads)
};

struct Embedding {
  NgramTable table;  // unused for the byte table
  int32_t shift;
  AlignedArray<int8_t> rows;  // (slots, width)
};

// Cosine and sine of each frequency at a position.  cosines: (4096), of a whole turn.
inline void rotate(const std::vector<uint32_t>& frequency, const std::vector<int16_t>& cosines,
                   uint32_t position, int32_t* cosine, int32_t* sine) {
  for (size_t j = 0; j < frequency.size(); ++j) {
    const uint32_t i = (position * frequency[j] + (uint32_t{1} << 19)) >> 20;
    cosine[j] = cosines[i];
    sine[j] = cosines[(i + 3072) % 4096];
  }
}

class ExactModel {
 public:
  // Throws UnsupportedError for an impossible architecture, CorruptError for tensors that do not
  // fit it or hold values outside their range.  Kernels: those of active_kernel().
  ExactModel(Architecture architecture, const Tensors& tensors);

  const Architecture& arch() const { return arch_; }
  Kernel kernel() const { return kernel_; }
  const DotKernel& dot() const { return *dot_; }
  const StageKernels& stages() const { return *stages_; }

  // Heads as they lie in rows and caches: stages.h.
  size_t half() const { return half_; }
  size_t head_size() const { return 2 * half_; }
  size_t value_size() const { return value_size_; }

  const Embedding& byte_embedding() const { return bytes_; }
  const std::vector<Embedding>& ngram_embeddings() const { return ngrams_; }
  const std::vector<Layer>& layers() const { return layers_; }
  const Product& head() const { return head_; }

  // The row's rotation at a position: cosine and sine, (half) each.
  void rotation(uint32_t position, int32_t* cosine, int32_t* sine) const;

  // Bytes of the weights.
  size_t memory() const { return weights_.memory() + memory_; }

 private:
  struct RowMap;
  Product product(const TensorReader& read, const std::string& name, const RowMap& outputs,
                  const RowMap& inputs, Input input);
  RowMap qkv_outputs() const;
  RowMap heads_inputs() const;

  Architecture arch_;
  Kernel kernel_;
  const DotKernel* dot_;
  const StageKernels* stages_;
  size_t half_, value_size_;
  Arena weights_;
  Embedding bytes_;
  std::vector<Embedding> ngrams_;
  std::vector<Layer> layers_;
  Product head_;
  std::vector<uint32_t> frequency_;  // (head_dim / 2)
  std::vector<int16_t> cosine_;      // (4096)
  size_t memory_ = 0;                // beside the arena
};

}  // namespace lmzip

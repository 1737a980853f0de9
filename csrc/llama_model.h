// llama_model.h: a pretrained model of docs/numerics-llama.md, its weights packed for this CPU.
//
// In: the tensors of a model file, by name.  Out: a LlamaModel whose every size has been checked,
// so that an engine can trust it.  Nothing here is ever changed after construction; any number of
// engines and threads may share one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "exact_model.h"
#include "llama_stages.h"

namespace lmzip {

inline constexpr size_t kMaxTokenSize = 1024;  // bytes

// Names as in docs/numerics-llama.md section 2.
struct LlamaArchitecture {
  size_t vocabulary, d_model, n_layers, n_heads, n_kv_heads, head_dim, d_ff;
  std::vector<size_t> windows, sinks;  // (n_layers)
  int residual_bits;                   // the residual stream counts in units of 2^-residual_bits
  int64_t epsilon, head_epsilon;       // in squared units of the residual stream; of a head
  bool qk_norm, tied, post_norms;
  std::vector<bool> local;  // (n_layers): which of the two rotations
  bool wide_qkv, wide_out, wide_gate_up, wide_down, wide_head;
  uint32_t start, escape;
};

struct LlamaLayer {
  size_t window, sinks;
  bool local;
  Product qkv, out, gate_up, down;
  AlignedArray<int32_t> qkv_bias;
  AlignedArray<float> attention_norm, mlp_norm;
  AlignedArray<float> q_norm, k_norm;                      // empty without qk_norm
  AlignedArray<float> attention_post_norm, mlp_post_norm;  // empty without post_norms
};

// Logits are made in blocks of so many symbols, whose sums stay in the cache.
inline constexpr size_t kHeadBlock = 1024;

class LlamaModel {
 public:
  // Throws UnsupportedError for an impossible architecture, CorruptError for tensors that do not
  // fit it or hold values outside their range.  Kernels: those of active_kernel().
  LlamaModel(LlamaArchitecture architecture, const Tensors& tensors);

  const LlamaArchitecture& arch() const { return arch_; }
  const DotKernel& dot() const { return *dot_; }
  const LlamaStages& stages() const { return *stages_; }
  Kernel kernel() const { return kernel_; }

  const std::vector<LlamaLayer>& layers() const { return layers_; }
  const int8_t* embedding(uint32_t token) const {
    return embedding_.data() + token * arch_.d_model;
  }
  float embedding_scale(uint32_t token) const { return embedding_scale_[token]; }
  const AlignedArray<float>& head_norm() const { return head_norm_; }
  const std::vector<Product>& head() const { return head_; }  // blocks of kHeadBlock symbols
  const std::vector<uint32_t>& unused_tokens() const { return unused_; }
  float softmax() const { return softmax_; }
  const uint16_t* sigmoid() const { return sigmoid_.data(); }

  // A layer's rotation at a position: cosine and sine, (head_dim / 2) each.
  void rotation(bool local, uint32_t position, int32_t* cosine, int32_t* sine) const;

  // The bytes of a token; none for one that is never coded.
  std::span<const uint8_t> token(uint32_t id) const {
    return {token_bytes_.data() + token_begin_[id], token_begin_[id + 1] - token_begin_[id]};
  }

  // Bytes of the weights.
  size_t memory() const { return weights_.memory() + memory_; }

 private:
  Product product(const TensorReader& read, const std::string& name, size_t outputs, size_t inputs,
                  bool wide);
  Product pack(const int8_t* rows, const float* scale, size_t outputs, size_t inputs, Input input);
  void read_layer(const TensorReader& read, size_t i);
  void read_tokens(const TensorReader& read);

  LlamaArchitecture arch_;
  Kernel kernel_;
  const DotKernel* dot_;
  const LlamaStages* stages_;
  Arena weights_;
  std::vector<LlamaLayer> layers_;
  AlignedArray<int8_t> embedding_;  // (vocabulary, d_model)
  AlignedArray<float> embedding_scale_, head_norm_;
  std::vector<Product> head_;
  std::vector<uint32_t> unused_;
  float softmax_;
  AlignedArray<uint16_t> sigmoid_;                     // (8192 + 1): kernels read in pairs
  std::vector<uint32_t> frequency_, local_frequency_;  // (head_dim / 2)
  std::vector<int16_t> cosine_;                        // (4096)
  std::vector<uint8_t> token_bytes_;
  std::vector<size_t> token_begin_;  // (vocabulary + 1)
  size_t memory_ = 0;                // beside the arena
};

}  // namespace lmzip

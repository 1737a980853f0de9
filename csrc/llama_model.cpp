// llama_model.cpp: see llama_model.h.
#include "llama_model.h"

#include <algorithm>
#include <cmath>

#include "errors.h"

namespace lmzip {
namespace {

constexpr float kMinScale = 0x1p-40f, kMaxScale = 0x1p10f, kMaxGain = 0x1p10f,
                kMaxPostGain = 0x1p16f;
constexpr int32_t kMaxBias = 1 << 24;

void check(const LlamaArchitecture& a) {
  const auto require = [](bool condition, const char* what) {
    if (!condition) throw UnsupportedError(std::string("architecture: ") + what);
  };
  require(a.vocabulary >= 2 && a.vocabulary <= size_t{1} << 20, "vocabulary must be 2 to 2^20");
  require(a.d_model >= 32 && a.d_model <= 8192 && a.d_model % 32 == 0,
          "d_model must be a multiple of 32, at most 8192");
  require(a.n_layers >= 1 && a.n_layers <= 256, "n_layers must be 1 to 256");
  require(a.n_heads >= 1 && a.n_heads <= 128 && a.n_kv_heads >= 1 && a.n_heads % a.n_kv_heads == 0,
          "n_heads must be 1 to 128 and a multiple of n_kv_heads");
  require(a.head_dim >= 32 && a.head_dim <= kMaxHeadDim && a.head_dim % 32 == 0,
          "head_dim must be a multiple of 32, at most 256");
  require(a.d_ff >= 32 && a.d_ff <= 65536 && a.d_ff % 32 == 0,
          "d_ff must be a multiple of 32, at most 65536");
  require(a.windows.size() == a.n_layers && a.sinks.size() == a.n_layers &&
              a.local.size() == a.n_layers,
          "each layer needs a window, a number of sinks and a rotation");
  for (const size_t w : a.windows) require(w >= 1 && w <= 4096, "windows must be 1 to 4096");
  for (const size_t s : a.sinks) require(s <= 16, "sinks must be at most 16");
  require(a.start < a.vocabulary && a.escape < a.vocabulary, "start and escape must be tokens");
  require(a.residual_bits >= 0 && a.residual_bits <= 14, "residual_bits must be 0 to 14");
  require(a.epsilon >= 0 && a.epsilon <= int64_t{1} << 42 && a.head_epsilon >= 0 &&
              a.head_epsilon <= int64_t{1} << 42,
          "epsilon must be 0 to 1");
}

}  // namespace

Product LlamaModel::pack(const int8_t* rows, const float* scale, size_t outputs, size_t inputs,
                         Input input) {
  const size_t n = round_up(outputs, kOutputStep);
  Product p{{input, n, inputs, weights_.take(n * inputs), AlignedArray<int32_t>(n), true},
            AlignedArray<float>(n)};
  AlignedArray<int8_t> padded(n * inputs);
  std::copy_n(rows, outputs * inputs, padded.data());
  std::copy_n(scale, outputs, p.scale.data());
  for (size_t i = 0; i < outputs; ++i) {
    for (size_t j = 0; j < inputs; ++j) p.weight.row_sums[i] += rows[i * inputs + j];
  }
  dot_->pack(padded.data(), n, inputs, input, p.weight.packed);
  memory_ += n * (sizeof(int32_t) + sizeof(float));
  return p;
}

Product LlamaModel::product(const TensorReader& read, const std::string& name, size_t outputs,
                            size_t inputs, bool wide) {
  const auto* rows = read.get<int8_t>(name + ".weight", {outputs, inputs}, -127, 127);
  const auto* scale = read.get<float>(name + ".scale", {outputs}, kMinScale, kMaxScale);
  return pack(rows, scale, outputs, inputs, wide ? Input::kInt14 : Input::kInt8);
}

void LlamaModel::read_layer(const TensorReader& read, size_t i) {
  const LlamaArchitecture& a = arch_;
  const std::string name = "layers." + std::to_string(i) + ".";
  const size_t heads = a.n_heads * a.head_dim, rows = heads + 2 * a.n_kv_heads * a.head_dim;
  LlamaLayer layer{a.windows[i],
                   a.sinks[i],
                   a.local[i],
                   product(read, name + "qkv", rows, a.d_model, a.wide_qkv),
                   product(read, name + "out", a.d_model, heads, a.wide_out),
                   product(read, name + "gate_up", 2 * a.d_ff, a.d_model, a.wide_gate_up),
                   product(read, name + "down", a.d_model, a.d_ff, a.wide_down),
                   read.copy<int32_t>(name + "qkv.bias", rows, -kMaxBias, kMaxBias),
                   read.copy<float>(name + "attention.norm", a.d_model, -kMaxGain, kMaxGain),
                   read.copy<float>(name + "mlp.norm", a.d_model, -kMaxGain, kMaxGain),
                   {},
                   {},
                   {},
                   {}};
  if (a.qk_norm) {
    layer.q_norm = read.copy<float>(name + "q.norm", a.head_dim, -kMaxGain, kMaxGain);
    layer.k_norm = read.copy<float>(name + "k.norm", a.head_dim, -kMaxGain, kMaxGain);
  }
  if (a.post_norms) {
    const auto gains = [&](const char* part) {
      return read.copy<float>(name + part + ".post_norm", a.d_model, -kMaxPostGain, kMaxPostGain);
    };
    layer.attention_post_norm = gains("attention");
    layer.mlp_post_norm = gains("mlp");
  }
  layers_.push_back(std::move(layer));
}

void LlamaModel::read_tokens(const TensorReader& read) {
  const auto* sizes =
      read.get<uint16_t>("tokens.size", {arch_.vocabulary}, 0, uint16_t{kMaxTokenSize});
  token_begin_.assign(1, 0);
  for (uint32_t id = 0; id < arch_.vocabulary; ++id) {
    token_begin_.push_back(token_begin_.back() + sizes[id]);
    if (sizes[id] == 0 && id != arch_.escape) unused_.push_back(id);
  }
  const auto* bytes = read.get<uint8_t>("tokens.bytes", {token_begin_.back()});
  token_bytes_.assign(bytes, bytes + token_begin_.back());
  if (sizes[arch_.escape] != 0) throw CorruptError("model: the escape token has bytes of its own");
}

LlamaModel::LlamaModel(LlamaArchitecture architecture, const Tensors& tensors)
    : arch_(std::move(architecture)),
      kernel_(active_kernel()),
      dot_(&dot_kernel(kernel_)),
      stages_(&llama_stages(kernel_)) {
  check(arch_);
  const TensorReader read(tensors);
  const size_t d = arch_.d_model, vocabulary = arch_.vocabulary;
  const auto* embedding = read.get<int8_t>("embedding.weight", {vocabulary, d}, -127, 127);
  embedding_ = AlignedArray<int8_t>(vocabulary * d);
  std::copy_n(embedding, vocabulary * d, embedding_.data());
  embedding_scale_ = read.copy<float>("embedding.scale", vocabulary, kMinScale, kMaxScale);
  memory_ += vocabulary * (d + sizeof(float));
  for (size_t i = 0; i < arch_.n_layers; ++i) read_layer(read, i);

  head_norm_ = read.copy<float>("head.norm", d, -kMaxGain, kMaxGain);
  const auto* scale = read.get<float>("head.scale", {vocabulary}, kMinScale, kMaxScale);
  const auto* head =
      arch_.tied ? embedding : read.get<int8_t>("head.weight", {vocabulary, d}, -127, 127);
  for (size_t begin = 0; begin < vocabulary; begin += kHeadBlock) {
    const size_t size = std::min(kHeadBlock, vocabulary - begin);
    head_.push_back(pack(head + begin * d, scale + begin, size, d,
                         arch_.wide_head ? Input::kInt14 : Input::kInt8));
  }

  softmax_ = *read.get<float>("softmax", {1}, kMinScale, kMaxScale);
  sigmoid_ = AlignedArray<uint16_t>(kSigmoidSize + 1);
  std::copy_n(read.get<uint16_t>("sigmoid", {kSigmoidSize}), kSigmoidSize, sigmoid_.data());
  const size_t half = arch_.head_dim / 2;
  const auto* frequency = read.get<uint32_t>("rotary.frequency", {half});
  frequency_.assign(frequency, frequency + half);
  if (std::find(arch_.local.begin(), arch_.local.end(), true) != arch_.local.end()) {
    frequency = read.get<uint32_t>("rotary.local_frequency", {half});
    local_frequency_.assign(frequency, frequency + half);
  }
  const auto* cosine =
      read.get<int16_t>("rotary.cosine", {4096}, -(int16_t{1} << 14), int16_t{1} << 14);
  cosine_.assign(cosine, cosine + 4096);
  read_tokens(read);
}

void LlamaModel::rotation(bool local, uint32_t position, int32_t* cosine, int32_t* sine) const {
  rotate(local ? local_frequency_ : frequency_, cosine_, position, cosine, sine);
}

}  // namespace lmzip

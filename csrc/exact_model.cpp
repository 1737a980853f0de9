// exact_model.cpp: see exact_model.h.
#include "exact_model.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "errors.h"

namespace lmzip {
namespace {

constexpr float kMinScale = 0x1p-60f;
constexpr float kMaxScale = 0x1p20f;

void require(bool condition, const std::string& what) {
  if (!condition) throw UnsupportedError("architecture: " + what + " is not possible");
}

// The limits of docs/numerics.md section 2; the bounds of its sums rest on them.
void check(const Architecture& a) {
  const auto within = [](size_t value, size_t low, size_t high) {
    return low <= value && value <= high;
  };
  require(within(a.d_model, 32, 2048) && a.d_model % 32 == 0,
          "d_model = " + std::to_string(a.d_model));
  require(within(a.n_layers, 1, 256) && a.windows.size() == a.n_layers,
          "n_layers = " + std::to_string(a.n_layers));
  require(
      within(a.n_heads, 1, 128) && within(a.n_kv_heads, 1, 128) && a.n_heads % a.n_kv_heads == 0,
      "n_heads = " + std::to_string(a.n_heads) +
          " with n_kv_heads = " + std::to_string(a.n_kv_heads));
  require(within(a.head_dim, 2, 128) && a.head_dim % 2 == 0,
          "head_dim = " + std::to_string(a.head_dim));
  require(within(a.d_ff, 32, 65536) && a.d_ff % 32 == 0, "d_ff = " + std::to_string(a.d_ff));
  for (const size_t window : a.windows)
    require(within(window, 1, 4096), "a window of " + std::to_string(window));
  require(a.ngrams.size() <= 3, "a number of n-gram tables above 3");
  for (const NgramTable& t : a.ngrams) {
    require(within(t.order, 2, 4) && within(t.log2_slots, 1, 24) && within(t.width, 1, a.d_model) &&
                t.offset <= a.d_model - t.width,
            "an n-gram table of order " + std::to_string(t.order));
  }
}

}  // namespace

// Where each row or column of a packed matrix comes from in the file; kPadding: it is zero.
struct ExactModel::RowMap {
  static constexpr size_t kPadding = ~size_t{0};
  size_t file_size;
  std::vector<size_t> source;

  static RowMap same(size_t size) {
    RowMap map{size, std::vector<size_t>(size)};
    for (size_t i = 0; i < size; ++i) map.source[i] = i;
    return map;
  }
  void pad_to(size_t size) { source.resize(size, kPadding); }
  void pad_to_multiple(size_t step) { pad_to(round_up(source.size(), step)); }
};

// Query and key heads: even channels, then odd ones, each padded to half_; value heads: padded.
ExactModel::RowMap ExactModel::qkv_outputs() const {
  const size_t d = arch_.head_dim;
  RowMap map{(arch_.n_heads + 2 * arch_.n_kv_heads) * d, {}};
  size_t start = 0;
  for (size_t h = 0; h < arch_.n_heads + arch_.n_kv_heads; ++h, start += d) {
    for (size_t parity = 0; parity < 2; ++parity) {
      for (size_t j = 0; j < d / 2; ++j) map.source.push_back(start + 2 * j + parity);
      map.pad_to_multiple(half_);
    }
  }
  for (size_t h = 0; h < arch_.n_kv_heads; ++h, start += d) {
    for (size_t j = 0; j < d; ++j) map.source.push_back(start + j);
    map.pad_to(map.source.size() + value_size_ - d);
  }
  map.pad_to_multiple(kOutputStep);
  return map;
}

ExactModel::RowMap ExactModel::heads_inputs() const {
  const size_t d = arch_.head_dim;
  RowMap map{arch_.n_heads * d, {}};
  for (size_t h = 0; h < arch_.n_heads; ++h) {
    for (size_t j = 0; j < d; ++j) map.source.push_back(h * d + j);
    map.pad_to(map.source.size() + value_size_ - d);
  }
  map.pad_to_multiple(kInputStep);
  return map;
}

Product ExactModel::product(const TensorReader& read, const std::string& name,
                            const RowMap& outputs, const RowMap& inputs, Input input) {
  const size_t n = outputs.source.size(), k = inputs.source.size();
  const int8_t* weight =
      read.get<int8_t>(name + ".weight", {outputs.file_size, inputs.file_size}, -127, 127);
  const float* scale = read.get<float>(name + ".scale", {outputs.file_size}, kMinScale, kMaxScale);
  Product p{{input, n, k, weights_.take(n * k), AlignedArray<int32_t>(n), false},
            AlignedArray<float>(n)};
  AlignedArray<int8_t> rows(n * k);
  for (size_t i = 0; i < n; ++i) {
    if (outputs.source[i] == RowMap::kPadding) continue;
    p.scale[i] = scale[outputs.source[i]];
    const int8_t* from = weight + outputs.source[i] * inputs.file_size;
    for (size_t j = 0; j < k; ++j) {
      if (inputs.source[j] == RowMap::kPadding) continue;
      rows[i * k + j] = from[inputs.source[j]];
      p.weight.row_sums[i] += from[inputs.source[j]];
    }
  }
  dot_->pack(rows.data(), n, k, input, p.weight.packed);
  memory_ += n * (sizeof(int32_t) + sizeof(float));
  return p;
}

ExactModel::ExactModel(Architecture architecture, const Tensors& tensors)
    : arch_(std::move(architecture)),
      kernel_(active_kernel()),
      dot_(&dot_kernel(kernel_)),
      stages_(&stage_kernels(kernel_)) {
  check(arch_);
  half_ = round_up(arch_.head_dim / 2, kHalfStep);
  value_size_ = round_up(arch_.head_dim, kValueStep);
  const TensorReader read(tensors);
  const size_t d = arch_.d_model;

  const auto* shifts = read.get<int32_t>("embedding.shift", {1 + arch_.ngrams.size()}, 0, 15);
  const auto embedding = [&](const std::string& name, const NgramTable& table, size_t slots,
                             int32_t shift) {
    Embedding e{table, shift, AlignedArray<int8_t>(slots * table.width)};
    const int8_t* rows = read.get<int8_t>(name, {slots, table.width}, -127, 127);
    std::copy_n(rows, slots * table.width, e.rows.data());
    memory_ += slots * table.width;
    return e;
  };
  bytes_ = embedding("embedding.byte", {1, 8, 0, d}, 256, shifts[0]);
  for (size_t i = 0; i < arch_.ngrams.size(); ++i) {
    const NgramTable& table = arch_.ngrams[i];
    ngrams_.push_back(embedding("embedding.ngram." + std::to_string(i), table,
                                size_t{1} << table.log2_slots, shifts[i + 1]));
  }

  const RowMap model = RowMap::same(d), hidden = RowMap::same(arch_.d_ff);
  for (size_t i = 0; i < arch_.n_layers; ++i) {
    const std::string prefix = "layers." + std::to_string(i);
    const auto* softmax = read.get<int32_t>(prefix + ".softmax", {arch_.n_heads}, 1, 4095);
    layers_.push_back({arch_.windows[i],
                       product(read, prefix + ".qkv", qkv_outputs(), model, Input::kInt8),
                       product(read, prefix + ".out", model, heads_inputs(), Input::kInt8),
                       product(read, prefix + ".up", hidden, model, Input::kInt8),
                       product(read, prefix + ".down", model, hidden, Input::kUint8),
                       std::vector<int32_t>(softmax, softmax + arch_.n_heads)});
  }
  head_ = product(read, "head", RowMap::same(256), model, Input::kInt14);

  const auto* frequency = read.get<uint32_t>("rotary.frequency", {arch_.head_dim / 2});
  frequency_.assign(frequency, frequency + arch_.head_dim / 2);
  const auto* cosine =
      read.get<int16_t>("rotary.cosine", {4096}, -(int16_t{1} << 14), int16_t{1} << 14);
  cosine_.assign(cosine, cosine + 4096);
}

void ExactModel::rotation(uint32_t position, int32_t* cosine, int32_t* sine) const {
  rotate(frequency_, cosine_, position, cosine, sine);
}

}  // namespace lmzip

// engine.cpp: see engine.h.  The order and the names are those of docs/numerics.md.
#include "engine.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace lmzip {

Cache::Cache(const ExactModel& model, size_t lanes)
    : lanes_(lanes),
      lane_size_(0),
      head_size_(model.head_size()),
      value_size_(model.value_size()),
      key_slots_(model.stages().key_slots),
      value_slots_(model.stages().value_slots),
      kv_heads_(model.arch().n_kv_heads) {
  for (const Layer& layer : model.layers()) {
    padded_slots_.push_back(round_up(layer.window, kSlotStep));
    layer_start_.push_back(lane_size_);
    lane_size_ += kv_heads_ * padded_slots_.back() * (head_size_ + value_size_);
  }
  lane_size_ = round_up(lane_size_, kCacheLine);
  data_ = AlignedArray<int8_t>(lanes * lane_size_);
}

size_t Cache::memory(const ExactModel& model, size_t lanes) {
  size_t slots = 0;
  for (const Layer& layer : model.layers()) slots += round_up(layer.window, kSlotStep);
  const size_t slot = model.arch().n_kv_heads * (model.head_size() + model.value_size());
  return lanes * round_up(slots * slot, kCacheLine);
}

int8_t* Cache::keys(size_t lane, size_t layer, size_t kv_head) {
  assert(lane < lanes_ && kv_head < kv_heads_);
  return data_.data() + lane * lane_size_ + layer_start_[layer] +
         kv_head * padded_slots_[layer] * head_size_;
}

int8_t* Cache::values(size_t lane, size_t layer, size_t kv_head) {
  assert(lane < lanes_ && kv_head < kv_heads_);
  return data_.data() + lane * lane_size_ + layer_start_[layer] +
         padded_slots_[layer] * (kv_heads_ * head_size_ + kv_head * value_size_);
}

int8_t Cache::key(size_t lane, size_t layer, size_t kv_head, size_t slot, size_t channel) {
  const size_t c = channel / 2 + channel % 2 * (head_size_ / 2);
  return keys(lane, layer, kv_head)[slot / key_slots_ * key_slots_ * head_size_ +
                                    c / 4 * 4 * key_slots_ + slot % key_slots_ * 4 + c % 4];
}

int8_t Cache::value(size_t lane, size_t layer, size_t kv_head, size_t slot, size_t channel) {
  return values(lane, layer, kv_head)[slot / value_slots_ * value_slots_ * value_size_ +
                                      channel * value_slots_ + slot % value_slots_];
}

struct Workspace::Sizes {
  size_t rows, d_model, d_ff, int8_inputs, inputs, outputs, half, queries, values, p, scores;

  Sizes(const ExactModel& model, size_t row_count) {
    const Architecture& a = model.arch();
    rows = row_count;
    d_model = a.d_model;
    d_ff = a.d_ff;
    int8_inputs = inputs = d_model;
    outputs = kLogits;
    size_t window = 0;
    for (const Layer& layer : model.layers()) {
      int8_inputs = std::max(int8_inputs, layer.out.weight.inputs);
      inputs = std::max({inputs, layer.out.weight.inputs, layer.down.weight.inputs});
      for (const Product* product : {&layer.qkv, &layer.out, &layer.up, &layer.down})
        outputs = std::max(outputs, product->weight.outputs);
      window = std::max(window, layer.window);
    }
    half = model.half();
    queries = (a.n_heads + 1) * model.head_size();
    values = a.n_kv_heads * model.value_size();
    p = round_up(a.n_heads * model.value_size(), kInputStep);
    scores = attention_scratch(round_up(window, kSlotStep));
  }

  size_t memory() const {
    const size_t row = d_model * 4 + 8 + int8_inputs + d_model * 2 + d_ff + outputs * 4 + half * 8;
    return rows * row + queries + values + p * 4 + scores * 4 + scratch_bytes(rows, inputs);
  }
};

Workspace::Workspace(const Sizes& s)
    : x(s.rows * s.d_model),
      r(s.rows),
      xq(s.rows * s.int8_inputs),
      xq_14(s.rows * s.d_model),
      hq(s.rows * s.d_ff),
      m(s.rows),
      acc(s.rows * s.outputs),
      rotation(s.rows * 2 * s.half),
      queries(s.queries + s.values),
      p(s.p),
      scores(s.scores),
      scratch(scratch_bytes(s.rows, s.inputs)) {}

Workspace::Workspace(const ExactModel& model, size_t rows) : Workspace(Sizes(model, rows)) {}

size_t Workspace::memory(const ExactModel& model, size_t rows) {
  return Sizes(model, rows).memory();
}

void Cache::store_key(const int8_t* key, size_t lane, size_t layer, size_t kv_head, size_t slot) {
  int8_t* to = keys(lane, layer, kv_head) + slot / key_slots_ * key_slots_ * head_size_ +
               slot % key_slots_ * 4;
  for (size_t c = 0; c < head_size_; c += 4) std::memcpy(to + key_slots_ * c, key + c, 4);
}

void Cache::store_value(const int8_t* value, size_t lane, size_t layer, size_t kv_head,
                        size_t slot) {
  int8_t* to = values(lane, layer, kv_head) + slot / value_slots_ * value_slots_ * value_size_ +
               slot % value_slots_;
  for (size_t c = 0; c < value_size_; ++c) to[value_slots_ * c] = value[c];
}

// One call of forward() or forward_part().
class Forward {
 public:
  Forward(const ExactModel& model, std::span<const Row> rows, int32_t* x, Cache& cache,
          Workspace& workspace)
      : model_(model),
        arch_(model.arch()),
        stages_(model.stages()),
        d_(model.arch().d_model),
        rows_(rows),
        x_(x),
        cache_(cache),
        w_(workspace) {}

  void run(size_t begin, size_t end, int32_t* logits, LayerGate* gate) {
    if (begin == 0) embed();
    find_rotations();
    for (size_t i = begin; i < end; ++i) {
      const Layer& layer = model_.layers()[i];
      quantize_rows();
      multiply(layer.qkv, w_.xq.data());
      if (gate != nullptr) gate->enter(i);
      attend(i, layer);
      if (gate != nullptr) gate->leave(i);
      project(layer);
      feed_forward(layer);
    }
    if (end == arch_.n_layers) make_logits(logits);
  }

 private:
  int32_t* x(size_t row) { return x_ + row * d_; }
  int32_t* acc(const Product& product, size_t row) {
    return w_.acc.data() + row * product.weight.outputs;
  }

  void multiply(const Product& product, const void* input) {
    model_.dot().multiply(product.weight.view(), input, rows_.size(), w_.acc.data(),
                          w_.scratch.data());
  }

  void embed() {
    for (size_t i = 0; i < rows_.size(); ++i) {
      const uint32_t history = rows_[i].history;
      std::fill_n(x(i), d_, 0);
      const Embedding& bytes = model_.byte_embedding();
      stages_.add_embedding(bytes.rows.data() + (history & 255) * d_, bytes.shift, d_, x(i));
      for (const Embedding& e : model_.ngram_embeddings()) {
        const uint32_t key = history & (0xFFFFFFFFu >> (32 - 8 * e.table.order));
        const size_t slot = (key * 0x9E3779B1u) >> (32 - e.table.log2_slots);
        stages_.add_embedding(e.rows.data() + slot * e.table.width, e.shift, e.table.width,
                              x(i) + e.table.offset);
      }
      stages_.clamp_residual(d_, x(i));
    }
  }

  void find_rotations() {
    for (size_t i = 0; i < rows_.size(); ++i) {
      int32_t* rotation = w_.rotation.data() + i * 2 * model_.half();
      model_.rotation(rows_[i].position, rotation, rotation + model_.half());
    }
  }

  void quantize_rows() {
    for (size_t i = 0; i < rows_.size(); ++i)
      w_.r[i] = stages_.quantize_row(x(i), d_, w_.xq.data() + i * d_);
  }

  // Row by row, since the rows of a lane read each other's keys and values.
  void attend(size_t i, const Layer& layer) {
    const size_t inputs = layer.out.weight.inputs;
    for (size_t row = 0; row < rows_.size(); ++row) {
      remember(i, layer, row);
      attend_row(i, layer, row);
      w_.m[row] = stages_.quantize_average(w_.p.data(), inputs, w_.xq.data() + row * inputs);
    }
  }

  void rotate(const Layer& layer, size_t row, size_t head, int8_t* out) {
    const int32_t* rotation = w_.rotation.data() + row * 2 * model_.half();
    const size_t start = head * model_.head_size();
    stages_.rotate(acc(layer.qkv, row) + start, layer.qkv.scale.data() + start, rotation,
                   rotation + model_.half(), model_.half(), static_cast<float>(arch_.head_dim),
                   out);
  }

  // The row's keys and values, into its slot of the cache.
  void remember(size_t i, const Layer& layer, size_t row) {
    const size_t head_size = model_.head_size(), value_size = model_.value_size();
    const size_t slot = rows_[row].position % layer.window;
    int8_t* key = w_.queries.data() + arch_.n_heads * head_size;
    int8_t* values = key + head_size;
    const size_t start = (arch_.n_heads + arch_.n_kv_heads) * head_size;
    stages_.quantize_values(acc(layer.qkv, row) + start, layer.qkv.scale.data() + start, w_.r[row],
                            arch_.n_kv_heads * value_size, values);
    for (size_t g = 0; g < arch_.n_kv_heads; ++g) {
      rotate(layer, row, arch_.n_heads + g, key);
      cache_.store_key(key, rows_[row].lane, i, g, slot);
      cache_.store_value(values + g * value_size, rows_[row].lane, i, g, slot);
    }
  }

  void attend_row(size_t i, const Layer& layer, size_t row) {
    const size_t group = arch_.n_heads / arch_.n_kv_heads;
    const size_t slots = std::min<size_t>(rows_[row].position + size_t{1}, layer.window);
    for (size_t h = 0; h < arch_.n_heads; ++h)
      rotate(layer, row, h, w_.queries.data() + h * model_.head_size());
    for (size_t g = 0; g < arch_.n_kv_heads; ++g) {
      const AttentionView view = {group,
                                  model_.head_size(),
                                  model_.value_size(),
                                  slots,
                                  cache_.keys(rows_[row].lane, i, g),
                                  cache_.values(rows_[row].lane, i, g),
                                  layer.softmax.data() + g * group};
      stages_.attend(view, w_.queries.data() + g * group * model_.head_size(), w_.scores.data(),
                     w_.p.data() + g * group * model_.value_size());
    }
  }

  // f(acc) * f(m) * s
  void project(const Layer& layer) {
    multiply(layer.out, w_.xq.data());
    for (size_t row = 0; row < rows_.size(); ++row) {
      stages_.add_product(acc(layer.out, row), layer.out.scale.data(),
                          static_cast<float>(w_.m[row]), d_, x(row));
    }
  }

  void feed_forward(const Layer& layer) {
    quantize_rows();
    multiply(layer.up, w_.xq.data());
    for (size_t row = 0; row < rows_.size(); ++row) {
      w_.m[row] = stages_.activate(acc(layer.up, row), layer.up.scale.data(), arch_.d_ff,
                                   w_.hq.data() + row * arch_.d_ff);
    }
    multiply(layer.down, w_.hq.data());
    for (size_t row = 0; row < rows_.size(); ++row) {
      const float factor = static_cast<float>(w_.m[row]) * w_.r[row] * w_.r[row];
      stages_.add_product(acc(layer.down, row), layer.down.scale.data(), factor, d_, x(row));
    }
  }

  void make_logits(int32_t* logits) {
    for (size_t row = 0; row < rows_.size(); ++row)
      w_.r[row] = stages_.quantize_row_14(x(row), d_, w_.xq_14.data() + row * d_);
    multiply(model_.head(), w_.xq_14.data());
    for (size_t row = 0; row < rows_.size(); ++row) {
      stages_.make_logits(acc(model_.head(), row), model_.head().scale.data(), w_.r[row], kLogits,
                          logits + row * kLogits);
    }
  }

  const ExactModel& model_;
  const Architecture& arch_;
  const StageKernels& stages_;
  const size_t d_;
  const std::span<const Row> rows_;
  int32_t* const x_;
  Cache& cache_;
  Workspace& w_;
};

void forward(const ExactModel& model, std::span<const Row> rows, Cache& cache, Workspace& workspace,
             int32_t* logits, LayerGate* gate) {
  assert(rows.size() <= kTileRows);
  Forward(model, rows, workspace.residual(), cache, workspace)
      .run(0, model.arch().n_layers, logits, gate);
}

void forward_part(const ExactModel& model, std::span<const Row> rows, size_t begin, size_t end,
                  int32_t* x, Cache& cache, Workspace& workspace, int32_t* logits) {
  assert(rows.size() <= kTileRows && begin <= end && end <= model.arch().n_layers);
  Forward(model, rows, x, cache, workspace).run(begin, end, logits, nullptr);
}

}  // namespace lmzip

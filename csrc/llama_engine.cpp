// llama_engine.cpp: see llama_engine.h.  The order and the names are those of
// docs/numerics-llama.md.
#include "llama_engine.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstring>
#include <tuple>

namespace lmzip {

struct LlamaCache::Shape {
  std::vector<Layer> layers;
  size_t lane_size = 0;

  Shape(const LlamaModel& model, size_t positions) {
    const LlamaArchitecture& a = model.arch();
    for (const LlamaLayer& layer : model.layers()) {
      const size_t sink_slots = round_up(layer.sinks, kLlamaSlotStep);
      const size_t ring = std::max<size_t>(std::min(layer.window, positions), 1);
      const size_t slots = sink_slots + round_up(ring, kLlamaSlotStep);
      layers.push_back({layer.sinks, sink_slots, ring, slots, lane_size});
      lane_size += a.n_kv_heads * slots * (2 * a.head_dim + 2 * sizeof(float));
    }
    lane_size = round_up(lane_size, kCacheLine);
  }
};

LlamaCache::LlamaCache(const LlamaModel& model, size_t lanes, size_t positions)
    : lanes_(lanes), head_dim_(model.arch().head_dim), kv_heads_(model.arch().n_kv_heads) {
  Shape shape(model, positions);
  layers_ = std::move(shape.layers);
  lane_size_ = shape.lane_size;
  data_ = AlignedArray<int8_t>(lanes * lane_size_);
}

size_t LlamaCache::memory(const LlamaModel& model, size_t lanes, size_t positions) {
  return lanes * Shape(model, positions).lane_size;
}

// A head: keys, values, scales of the keys, scales of the values; each a multiple of a cache line.
LlamaHeadCache LlamaCache::head(size_t lane, size_t layer, size_t kv_head) {
  assert(lane < lanes_ && kv_head < kv_heads_);
  const Layer& l = layers_[layer];
  const size_t size = l.slots * (2 * head_dim_ + 2 * sizeof(float));
  int8_t* at = data_.data() + lane * lane_size_ + l.start + kv_head * size;
  auto* scales = reinterpret_cast<float*>(at + 2 * l.slots * head_dim_);
  return {at, at + l.slots * head_dim_, scales, scales + l.slots};
}

size_t LlamaCache::slot(size_t layer, uint32_t position) const {
  const Layer& l = layers_[layer];
  return position < l.sinks ? position : l.sink_slots + (position - l.sinks) % l.ring;
}

struct LlamaWorkspace::Sizes {
  size_t rows, d_model, inputs, outputs, qkv, head_dim, scores;

  Sizes(const LlamaModel& model, size_t row_count) {
    const LlamaArchitecture& a = model.arch();
    rows = row_count;
    d_model = a.d_model;
    head_dim = a.head_dim;
    const size_t heads = a.n_heads * a.head_dim;
    qkv = heads + 2 * a.n_kv_heads * a.head_dim;
    inputs = std::max({a.d_model, heads, a.d_ff});
    outputs = std::max({qkv, a.d_model, 2 * a.d_ff, kHeadBlock});
    size_t window = 0;
    for (const size_t w : a.windows) window = std::max(window, w);
    scores = llama_attention_scratch(round_up(window, kLlamaSlotStep) + kLlamaSlotStep);
  }

  size_t memory(size_t threads) const {
    const size_t row = d_model * 4 + 4 + inputs * 6 + outputs * 4;
    const size_t each =
        head_dim * 18 + std::max(qkv, d_model) * 4 + scores * 4 + scratch_bytes(rows, inputs);
    return rows * row + threads * each;
  }
};

LlamaWorkspace::LlamaWorkspace(const Sizes& s, size_t threads)
    : widest(s.inputs),
      x(s.rows * s.d_model),
      r(s.rows),
      y(s.rows * s.inputs),
      q(s.rows * s.inputs),
      acc(s.rows * s.outputs) {
  for (size_t i = 0; i < threads; ++i) {
    own.push_back(
        {AlignedArray<int32_t>(2 * s.head_dim), AlignedArray<int32_t>(std::max(s.qkv, s.d_model)),
         AlignedArray<int16_t>(s.head_dim),
         AlignedArray<int8_t>(2 * kLlamaHeadsTogether * s.head_dim),
         AlignedArray<int32_t>(s.scores), AlignedArray<uint8_t>(scratch_bytes(s.rows, s.inputs))});
  }
}

LlamaWorkspace::LlamaWorkspace(const LlamaModel& model, size_t rows, size_t threads)
    : LlamaWorkspace(Sizes(model, rows), threads) {}

size_t LlamaWorkspace::memory(const LlamaModel& model, size_t rows, size_t threads) {
  return Sizes(model, rows).memory(threads);
}

// One call of llama_forward().
class LlamaForward {
  static constexpr float kPostLimit = 0x1p22f;
  static constexpr size_t kTeamOutputs = 32;  // a part of a product is a multiple: whole tiles

 public:
  LlamaForward(const LlamaModel& model, std::span<const LlamaRow> rows, LlamaCache& cache,
               LlamaWorkspace& workspace, LlamaTeam& team)
      : model_(model),
        arch_(model.arch()),
        stages_(model.stages()),
        d_(model.arch().d_model),
        heads_(model.arch().n_heads * model.arch().head_dim),
        residual_(std::ldexp(1.0f, model.arch().residual_bits)),
        rows_(rows),
        cache_(cache),
        team_(team),
        w_(workspace),
        own_(workspace.own[team.thread()]) {
    std::tie(first_, last_) = team.part(rows.size());
  }

  // Between two meetings a thread writes its own rows, or its own outputs of all rows, or its own
  // heads, and reads what was written before the first.
  void run(LayerGate* gate) {
    embed();
    for (size_t i = 0; i < arch_.n_layers; ++i) {
      const LlamaLayer& layer = model_.layers()[i];
      normalize(layer.attention_norm, layer.qkv);
      multiply(layer.qkv);
      if (gate != nullptr) gate->enter(i);
      attend(i, layer);
      if (gate != nullptr) gate->leave(i);
      project(layer);
      feed_forward(layer);
    }
    normalize(model_.head_norm(), model_.head()[0]);
    team_.meet();
  }

  // After run(), of rows first to first + count.  A thread's outputs become logits as they are:
  // nobody else asks for them.
  void make_logits(size_t first, size_t count, int32_t* logits) {
    const size_t vocabulary = arch_.vocabulary;
    for (size_t block = 0; block < model_.head().size(); ++block) {
      const Product& head = model_.head()[block];
      // The last block may be smaller, and others' sums still lie where this thread's will.
      if (block > 0 && head.weight.outputs != model_.head()[0].weight.outputs) team_.meet();
      const auto [begin, end] = multiply_part(head, first, count);
      const size_t all = block * kHeadBlock + begin;
      if (begin >= end || all >= vocabulary) continue;
      for (size_t row = 0; row < count; ++row) {
        // Padded outputs would be written past the row: it is done in place, and copied.
        int32_t* sums = acc(head, row) + begin;
        int32_t* to = logits + row * vocabulary + all;
        const size_t n = end - begin, size = std::min(n, vocabulary - all);
        const float r = w_.r[first + row];
        stages_.logits(sums, r, head.scale.data() + begin, n, size == n ? to : sums);
        if (size != n) std::copy_n(sums, size, to);
      }
    }
    team_.meet();
    const auto [begin, end] = team_.part(count);
    for (size_t row = begin; row < end; ++row) {
      for (const uint32_t id : model_.unused_tokens())
        logits[row * vocabulary + id] = -kLlamaLogitMax;
    }
    team_.meet();
  }

 private:
  int32_t* x(size_t row) { return w_.x.data() + row * d_; }
  int32_t* acc(const Product& product, size_t row) {
    return w_.acc.data() + row * product.weight.outputs;
  }

  float* y(size_t row) { return w_.y.data() + row * w_.widest; }

  // All rows' inputs are there when it begins, all outputs when it returns.
  void multiply(const Product& product) {
    team_.meet();
    multiply_part(product, 0, rows_.size());
    team_.meet();
  }

  // The row's input of the product.
  void* q(const Product& product, size_t row) {
    const size_t at = row * product.weight.inputs;
    if (product.weight.input == Input::kInt8) return reinterpret_cast<int8_t*>(w_.q.data()) + at;
    return w_.q.data() + at;
  }

  // Of `count` rows, whose sums come first.  Returns which outputs this thread has made.
  std::pair<size_t, size_t> multiply_part(const Product& product, size_t first, size_t count) {
    const auto [begin, end] = team_.part(product.weight.outputs, kTeamOutputs);
    if (begin < end) {
      model_.dot().multiply(product.weight.part(begin, end), q(product, first), count,
                            w_.acc.data() + begin, own_.scratch.data());
    }
    return {begin, end};
  }

  // y (inputs) with the largest magnitude m -> the row's input of the product; returns r.
  float quantize(const float* y, float m, const Product& product, size_t row) {
    const size_t n = product.weight.inputs;
    const int32_t limit = product.weight.input == Input::kInt8 ? 127 : wide_limit(n, 8191);
    return stages_.quantize(y, m, limit, n, q(product, row));
  }

  void embed() {
    for (size_t i = first_; i < last_; ++i) {
      const uint32_t token = rows_[i].token;
      assert(token < arch_.vocabulary);
      stages_.embed(model_.embedding(token), model_.embedding_scale(token) * residual_, d_, x(i));
    }
  }

  void normalize(const AlignedArray<float>& gain, const Product& product) {
    for (size_t i = first_; i < last_; ++i) {
      const float m = stages_.scale(x(i), gain.data(), d_, y(i));
      w_.r[i] = quantize(y(i), m, product, i) * root_mean_scale(x(i));
    }
  }

  // 1 / the root mean square of a residual row.
  float root_mean_scale(const int32_t* row) const {
    const auto m = static_cast<uint32_t>(stages_.peak(row, d_));
    const int s = std::max(0, static_cast<int>(std::bit_width(m)) - 24);
    const int64_t sum = (arch_.epsilon >> 2 * s) + stages_.squares(row, s, d_);
    return std::sqrt(static_cast<float>(d_) / static_cast<float>(std::max<int64_t>(sum, 1))) *
           std::ldexp(1.0f, -s);
  }

  // Groups of heads of one row after the other, shared by the team.
  void attend(size_t i, const LlamaLayer& layer) {
    const size_t groups = arch_.n_kv_heads;
    const auto [begin, end] = team_.part(rows_.size() * groups);
    for (size_t task = begin; task < end;) {
      const size_t row = task / groups;
      begin_row(layer, row);
      for (; task < end && task / groups == row; ++task) attend_group(i, layer, row, task % groups);
    }
  }

  void begin_row(const LlamaLayer& layer, size_t row) {
    const uint32_t t = rows_[row].position;
    stages_.heads(acc(layer.qkv, row), w_.r[row] * 4096.0f, layer.qkv.scale.data(),
                  layer.qkv_bias.data(), layer.qkv.weight.outputs, own_.u.data());
    const size_t half = arch_.head_dim / 2;
    int32_t* rotation = own_.rotation.data();
    model_.rotation(layer.local, t, rotation, rotation + half);
    const auto end = static_cast<uint32_t>(layer.window + layer.sinks - 1);
    if (t > end) model_.rotation(layer.local, end, rotation + 2 * half, rotation + 3 * half);
  }

  void attend_group(size_t i, const LlamaLayer& layer, size_t row, size_t g) {
    const bool turned = rows_[row].position > layer.window + layer.sinks - 1;
    remember(i, layer, row, g);
    const size_t group = arch_.n_heads / arch_.n_kv_heads;
    for (size_t h = g * group; h < (g + 1) * group; h += kLlamaHeadsTogether) {
      const size_t heads = std::min(kLlamaHeadsTogether, (g + 1) * group - h);
      attend_heads(i, layer, row, g, h, heads, turned, y(row) + h * arch_.head_dim);
    }
  }

  // A head's channels of u to 14 bits; returns its scale.
  float level(const int32_t* u, const AlignedArray<float>& norm) {
    const size_t d = arch_.head_dim;
    auto* y = reinterpret_cast<float*>(own_.scores.data());
    const float m = stages_.scale(u, norm.size() != 0 ? norm.data() : nullptr, d, y);
    const float r = stages_.quantize(y, m, 8191, d, own_.t.data());
    if (norm.size() == 0) return r * 0x1p-12f;
    const int64_t sum = arch_.head_epsilon + stages_.squares(u, 0, d);
    return r * std::sqrt(static_cast<float>(d) / static_cast<float>(std::max<int64_t>(sum, 1)));
  }

  float rotate(float scale, const int32_t* rotation, int8_t* out) {
    const size_t half = arch_.head_dim / 2;
    const int32_t m = stages_.rotate(own_.t.data(), rotation, rotation + half, half, out);
    return scale * 0x1p-14f * (static_cast<float>(m) / 127.0f);
  }

  // The row's key and value of group g, into their slot of the cache.
  void remember(size_t i, const LlamaLayer& layer, size_t row, size_t g) {
    const size_t d = arch_.head_dim, slot = cache_.slot(i, rows_[row].position);
    int8_t* q = own_.queries.data();
    const LlamaHeadCache head = cache_.head(rows_[row].lane, i, g);
    const int32_t* key = own_.u.data() + heads_ + g * d;
    head.key_scales[slot] = rotate(level(key, layer.k_norm), own_.rotation.data(), q);
    int8_t* to = head.keys + slot / 16 * 16 * d + slot % 16 * 4;
    for (size_t c = 0; c < d; c += 4) std::memcpy(to + 16 * c, q + c, 4);

    auto* values = reinterpret_cast<float*>(own_.scores.data());
    const float m = stages_.scale(key + arch_.n_kv_heads * d, nullptr, d, values);
    head.value_scales[slot] = stages_.quantize(values, m, 127, d, q) * 0x1p-12f;
    to = head.values + slot / 4 * 4 * d + slot % 4;
    for (size_t c = 0; c < d; ++c) to[4 * c] = q[c];
  }

  // Heads h to h + heads, of group g.
  void attend_heads(size_t i, const LlamaLayer& layer, size_t row, size_t g, size_t h, size_t heads,
                    bool turned, float* p) {
    const size_t d = arch_.head_dim, t = rows_[row].position;
    int8_t *near = own_.queries.data(), *far = near + kLlamaHeadsTogether * d;
    float near_scales[kLlamaHeadsTogether], far_scales[kLlamaHeadsTogether];
    for (size_t k = 0; k < heads; ++k) {
      const float scale = level(own_.u.data() + (h + k) * d, layer.q_norm);
      near_scales[k] = rotate(scale, own_.rotation.data(), near + k * d) * model_.softmax();
      if (!turned) continue;
      far_scales[k] = rotate(scale, own_.rotation.data() + d, far + k * d) * model_.softmax();
    }
    const LlamaHeadCache head = cache_.head(rows_[row].lane, i, g);
    const size_t seen = t + 1;
    const LlamaAttention view = {head.keys,
                                 head.values,
                                 head.key_scales,
                                 head.value_scales,
                                 std::min(seen, layer.sinks),
                                 cache_.sink_slots(i),
                                 std::min(seen - std::min(seen, layer.sinks), layer.window),
                                 d,
                                 wide_limit(layer.window + layer.sinks, 16383),
                                 heads,
                                 turned ? far : near,
                                 near,
                                 turned ? far_scales : near_scales,
                                 near_scales,
                                 next_keys(i, row, g)};
    stages_.attend(view, own_.scores.data(), p);
  }

  // Those of the group after g, or of the next row.
  const int8_t* next_keys(size_t i, size_t row, size_t g) {
    if (g + 1 < arch_.n_kv_heads) return cache_.head(rows_[row].lane, i, g + 1).keys;
    return cache_.head(rows_[row + 1 < rows_.size() ? row + 1 : 0].lane, i, 0).keys;
  }

  void project(const LlamaLayer& layer) {
    team_.meet();  // a row's heads are of several threads
    for (size_t row = first_; row < last_; ++row) {
      const float* p = y(row);
      w_.r[row] = quantize(p, stages_.largest(p, heads_), layer.out, row);
    }
    multiply(layer.out);
    for (size_t row = first_; row < last_; ++row)
      add(layer.out, layer.attention_post_norm, row, w_.r[row] * residual_);
  }

  // The product's row, r of it in residual units, onto x; normalized where there are gains for it.
  void add(const Product& product, const AlignedArray<float>& gain, size_t row, float r) {
    const int32_t* sums = acc(product, row);
    if (gain.size() == 0) {
      stages_.add(sums, r, product.scale.data(), d_, x(row));
      return;
    }
    const float m = stages_.scale(sums, product.scale.data(), d_, y(row));
    if (m == 0.0f) return;
    int32_t* u = own_.u.data();
    std::fill_n(u, d_, 0);
    stages_.add(sums, kPostLimit / m, product.scale.data(), d_, u);
    const float unit = std::clamp(m * (1.0f / kPostLimit) * r, 0x1p-40f, 0x1p60f);
    const float epsilon = static_cast<float>(arch_.epsilon) / (unit * unit);
    const int64_t total =
        static_cast<int64_t>(std::rint(std::min(epsilon, 0x1p60f))) + stages_.squares(u, 0, d_);
    const float c =
        std::sqrt(static_cast<float>(d_) / static_cast<float>(std::max<int64_t>(total, 1)));
    stages_.add(u, c * residual_, gain.data(), d_, x(row));
  }

  void feed_forward(const LlamaLayer& layer) {
    const size_t d_ff = arch_.d_ff;
    normalize(layer.mlp_norm, layer.gate_up);
    multiply(layer.gate_up);
    const float* scale = layer.gate_up.scale.data();
    for (size_t row = first_; row < last_; ++row) {
      const int32_t* sums = acc(layer.gate_up, row);
      const float m = stages_.gate(sums, sums + d_ff, w_.r[row], scale, scale + d_ff,
                                   model_.sigmoid(), d_ff, y(row));
      w_.r[row] = quantize(y(row), m, layer.down, row) * w_.r[row] * (residual_ * 0x1p-16f);
    }
    multiply(layer.down);
    for (size_t row = first_; row < last_; ++row)
      add(layer.down, layer.mlp_post_norm, row, w_.r[row]);
  }

  const LlamaModel& model_;
  const LlamaArchitecture& arch_;
  const LlamaStages& stages_;
  const size_t d_, heads_;
  const float residual_;  // units of the residual stream in 1
  const std::span<const LlamaRow> rows_;
  LlamaCache& cache_;
  LlamaTeam& team_;
  LlamaWorkspace& w_;
  LlamaWorkspace::Own& own_;
  size_t first_, last_;  // this thread's rows
};

namespace {

struct Alone : LlamaTeam {
  Alone() : LlamaTeam(0, 1) {}
  void meet() override {}
};

}  // namespace

void llama_forward(const LlamaModel& model, std::span<const LlamaRow> rows, LlamaCache& cache,
                   LlamaWorkspace& workspace, int32_t* logits, LayerGate* gate) {
  llama_forward(model, rows, cache, workspace, logits, gate, rows.size(), [](size_t, size_t) {});
}

void llama_forward(const LlamaModel& model, std::span<const LlamaRow> rows, LlamaCache& cache,
                   LlamaWorkspace& workspace, int32_t* logits, LayerGate* gate, size_t part,
                   const TakeLogits& take) {
  assert(rows.size() <= kLlamaRows);
  if (rows.empty()) return;
  Alone alone;
  LlamaForward forward(model, rows, cache, workspace, alone);
  forward.run(gate);
  for (size_t first = 0; first < rows.size(); first += part) {
    const size_t count = std::min(part, rows.size() - first);
    forward.make_logits(first, count, logits);
    take(first, count);
  }
}

void llama_forward(const LlamaModel& model, std::span<const LlamaRow> rows, LlamaCache& cache,
                   LlamaWorkspace& workspace, int32_t* logits, LlamaTeam& team) {
  assert(rows.size() <= kLlamaRows);
  if (rows.empty()) return;
  LlamaForward forward(model, rows, cache, workspace, team);
  forward.run(nullptr);
  forward.make_logits(0, rows.size(), logits);
}

}  // namespace lmzip

// engine.h: docs/numerics.md sections 3 to 6, for rows of any lanes and positions at once.
//
// A row is one position of one lane: its last four inputs go in, its 256 logits come out.  What
// rows share is the cache of keys and values: a row reads those of earlier positions of its lane,
// and leaves its own.  So a step of all lanes and a run of positions of one lane are the same call.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "aligned.h"
#include "exact_model.h"

namespace lmzip {

inline constexpr size_t kLogits = 256;
inline constexpr size_t kTileRows = 64;  // rows of one call of forward(), at most

struct Row {
  uint32_t lane;
  uint32_t position;
  uint32_t history;  // the last four inputs, the newest in the low byte; 0 before the lane begins
};

// h0 becomes h1, and so on.
inline constexpr uint32_t push_input(uint32_t history, uint8_t input) {
  return history << 8 | input;
}

// Keys and values of all lanes.  Different lanes may be used by different threads.
class Cache {
 public:
  Cache(const ExactModel& model, size_t lanes);

  size_t lanes() const { return lanes_; }
  int8_t* keys(size_t lane, size_t layer, size_t kv_head);
  int8_t* values(size_t lane, size_t layer, size_t kv_head);

  // A head of one position into its slot: key (head_size), value (value_size).
  void store_key(const int8_t* key, size_t lane, size_t layer, size_t kv_head, size_t slot);
  void store_value(const int8_t* value, size_t lane, size_t layer, size_t kv_head, size_t slot);

  // One number of a slot, by the channel that docs/numerics.md gives it.
  int8_t key(size_t lane, size_t layer, size_t kv_head, size_t slot, size_t channel);
  int8_t value(size_t lane, size_t layer, size_t kv_head, size_t slot, size_t channel);

  static size_t memory(const ExactModel& model, size_t lanes);

 private:
  size_t lanes_, lane_size_;
  size_t head_size_, value_size_, key_slots_, value_slots_, kv_heads_;
  std::vector<size_t> padded_slots_;  // (n_layers)
  std::vector<size_t> layer_start_;   // (n_layers), bytes from the start of a lane
  AlignedArray<int8_t> data_;
};

// The buffers of one thread.
class Workspace {
 public:
  // 1 <= rows <= kTileRows
  Workspace(const ExactModel& model, size_t rows);
  static size_t memory(const ExactModel& model, size_t rows);

  int32_t* residual() { return x.data(); }  // of whole calls

 private:
  friend class Forward;
  struct Sizes;
  explicit Workspace(const Sizes& sizes);

  AlignedArray<int32_t> x;         // (rows, d_model): the residual stream
  AlignedArray<float> r;           // (rows)
  AlignedArray<int8_t> xq;         // (rows, widest int8 input)
  AlignedArray<int16_t> xq_14;     // (rows, d_model)
  AlignedArray<uint8_t> hq;        // (rows, d_ff)
  AlignedArray<int32_t> m;         // (rows)
  AlignedArray<int32_t> acc;       // (rows, widest output)
  AlignedArray<int32_t> rotation;  // (rows, 2, half): cosine, sine
  AlignedArray<int8_t> queries;    // (n_heads, head_size), then one key and one row of values
  AlignedArray<int32_t> p;         // (padded n_heads * value_size)
  AlignedArray<int32_t> scores;
  AlignedArray<uint8_t> scratch;
};

// Called before and after the attention of each layer, the only stage in which rows meet earlier
// ones; for threads that work on one lane.
class LayerGate {
 public:
  virtual ~LayerGate() = default;
  virtual void enter(size_t layer) = 0;
  virtual void leave(size_t layer) = 0;
};

// rows (at most the workspace's) -> logits (rows, 256).  A lane's rows come in order of position,
// from 0 and without gaps, over all calls.  FloatMode must be in scope.
void forward(const ExactModel& model, std::span<const Row> rows, Cache& cache, Workspace& workspace,
             int32_t* logits, LayerGate* gate = nullptr);

// The same in parts, one after the other: layers begin..end.  x (rows, d_model) is the residual
// stream that a part leaves to the next; the first makes it, the last makes the logits of it.
// Different layers may be used by different threads, each with a workspace of its own.
void forward_part(const ExactModel& model, std::span<const Row> rows, size_t begin, size_t end,
                  int32_t* x, Cache& cache, Workspace& workspace, int32_t* logits);

}  // namespace lmzip

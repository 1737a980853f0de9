// llama_engine.h: docs/numerics-llama.md sections 3 to 6, for rows of any lanes and positions.
//
// A row is one position of one lane: a token goes in, the logits of the next come out.  What rows
// share is the cache of keys and values: a row reads those of earlier positions of its lane, and
// leaves its own.  So a step of all lanes and a run of positions of one lane are the same call.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "engine.h"  // LayerGate
#include "llama_model.h"

namespace lmzip {

inline constexpr size_t kLlamaRows = 256;  // of one call, at most

struct LlamaRow {
  uint32_t lane;
  uint32_t position;
  uint32_t token;
};

// One head's share of a layer's cache.
struct LlamaHeadCache {
  int8_t* keys;         // (slots / 16, head_dim / 4, 16, 4)
  int8_t* values;       // (slots / 4, head_dim, 4)
  float* key_scales;    // (slots)
  float* value_scales;  // (slots)
};

// Keys and values of all lanes.  Different lanes may be used by different threads.
class LlamaCache {
 public:
  // For lanes of at most `positions` tokens.
  LlamaCache(const LlamaModel& model, size_t lanes, size_t positions);

  size_t lanes() const { return lanes_; }
  LlamaHeadCache head(size_t lane, size_t layer, size_t kv_head);

  // Where a position lies: the sinks, padded to 16, then a ring.
  size_t slot(size_t layer, uint32_t position) const;
  size_t sink_slots(size_t layer) const { return layers_[layer].sink_slots; }

  // One number of a slot, for tests.
  static int8_t key(const LlamaHeadCache& head, size_t head_dim, size_t slot, size_t channel) {
    return head.keys[slot / 16 * 16 * head_dim + channel / 4 * 64 + slot % 16 * 4 + channel % 4];
  }
  static int8_t value(const LlamaHeadCache& head, size_t head_dim, size_t slot, size_t channel) {
    return head.values[slot / 4 * 4 * head_dim + 4 * channel + slot % 4];
  }

  static size_t memory(const LlamaModel& model, size_t lanes, size_t positions);

 private:
  struct Layer {
    size_t sinks, sink_slots, ring, slots, start;  // start: bytes from the start of a lane
  };
  struct Shape;

  size_t lanes_, lane_size_, head_dim_, kv_heads_;
  std::vector<Layer> layers_;
  AlignedArray<int8_t> data_;
};

// The buffers of one call: of a thread, or of a team.
class LlamaWorkspace {
 public:
  // 1 <= rows <= kLlamaRows
  LlamaWorkspace(const LlamaModel& model, size_t rows, size_t threads = 1);
  static size_t memory(const LlamaModel& model, size_t rows, size_t threads = 1);

 private:
  friend class LlamaForward;
  struct Sizes;
  LlamaWorkspace(const Sizes& sizes, size_t threads);

  // What a thread has to itself.
  struct Own {
    AlignedArray<int32_t> rotation;  // (4, head_dim / 2): at the row's position; at the sinks' end
    AlignedArray<int32_t> u;         // (qkv outputs or d_model)
    AlignedArray<int16_t> t;         // (head_dim)
    AlignedArray<int8_t> queries;    // (2, heads, head_dim): near, far; or a key, or a value
    AlignedArray<int32_t> scores;
    AlignedArray<uint8_t> scratch;
  };

  size_t widest;              // input
  AlignedArray<int32_t> x;    // (rows, d_model): the residual stream
  AlignedArray<float> r;      // (rows)
  AlignedArray<float> y;      // (rows, widest input): before quantization
  AlignedArray<int16_t> q;    // (rows, widest input): int8 or int16
  AlignedArray<int32_t> acc;  // (rows, widest output)
  std::vector<Own> own;       // (threads)
};

// One of several threads that take the same rows through the network together, so that each reads
// but a part of the weights: of few rows they are what takes time.
class LlamaTeam {
 public:
  LlamaTeam(size_t thread, size_t threads) : thread_(thread), threads_(threads) {}
  virtual ~LlamaTeam() = default;
  virtual void meet() = 0;  // returns when all have come

  size_t thread() const { return thread_; }

  // This thread's part of n things, in steps.
  std::pair<size_t, size_t> part(size_t n, size_t step = 1) const {
    const size_t steps = (n + step - 1) / step;
    return {std::min(n, steps * thread_ / threads_ * step),
            std::min(n, steps * (thread_ + 1) / threads_ * step)};
  }

 private:
  size_t thread_, threads_;
};

// rows (at most the workspace's) -> logits (rows, vocabulary).  A lane's rows come in order of
// position, from 0 and without gaps, over all calls.  FloatMode must be in scope.
void llama_forward(const LlamaModel& model, std::span<const LlamaRow> rows, LlamaCache& cache,
                   LlamaWorkspace& workspace, int32_t* logits, LayerGate* gate = nullptr);

// The same where logits of all rows at once would take too much room: take(first, count) finds
// those of so many rows, at most `part`, in logits (part, vocabulary).
using TakeLogits = std::function<void(size_t first, size_t count)>;
void llama_forward(const LlamaModel& model, std::span<const LlamaRow> rows, LlamaCache& cache,
                   LlamaWorkspace& workspace, int32_t* logits, LayerGate* gate, size_t part,
                   const TakeLogits& take);

// The first by a team, all of which call it with the same arguments but their own `team`; of
// each lane there is one row.  Returns when all logits are there.
void llama_forward(const LlamaModel& model, std::span<const LlamaRow> rows, LlamaCache& cache,
                   LlamaWorkspace& workspace, int32_t* logits, LlamaTeam& team);

}  // namespace lmzip

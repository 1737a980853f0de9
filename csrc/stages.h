// stages.h: everything between the products, one row (one position of one lane) at a time.  The
// operations, their names and their bounds are those of docs/numerics.md sections 3 to 6.
//
// Layouts are the engine's own (exact_model.h makes the weights fit):
//   query or key head   (2, half): the even channels, then the odd ones, each padded with zeros
//   value head          (value_size)
//   key cache           (slots / key_slots, 2 half / 4, key_slots, 4) for one key/value head
//   value cache         (slots / value_slots, value_size, value_slots)
// key_slots and value_slots divide kSlotStep; each kernel has its own.  A cache is a ring: position
// t has the slot t mod window.  Attention minds no order of slots.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu.h"

namespace lmzip {

inline constexpr int32_t kResidualMax = (1 << 23) - 1;
inline constexpr int32_t kLogitMax = 1 << 20;
inline constexpr size_t kSlotStep = 16;   // slots of a cache are padded to a multiple
inline constexpr size_t kHalfStep = 16;   // half a query or key head, likewise
inline constexpr size_t kValueStep = 16;  // a value head, likewise

// Sizes and the cache of one key/value head, with the queries of its group.
struct AttentionView {
  size_t group;      // query heads
  size_t head_size;  // 2 half
  size_t value_size;
  size_t slots;  // in use, at least 1; those after them up to a multiple of kSlotStep are zero
  const int8_t* keys;
  const int8_t* values;
  const int32_t* softmax;  // (group)
};

struct StageKernels {
  size_t key_slots, value_slots;

  // x (n) += row (n) << shift
  void (*add_embedding)(const int8_t* row, int32_t shift, size_t n, int32_t* x);
  void (*clamp_residual)(size_t n, int32_t* x);

  // x (n) -> xq (n); returns r.  n is a multiple of 32.
  float (*quantize_row)(const int32_t* x, size_t n, int8_t* xq);
  float (*quantize_row_14)(const int32_t* x, size_t n, int16_t* xq);

  // One query or key head: products and scales (2, half), the row's cosines and sines (half), and
  // d, the true size of the head -> (2, half).
  void (*rotate)(const int32_t* acc, const float* scale, const int32_t* cosine, const int32_t* sine,
                 size_t half, float d, int8_t* out);

  // Values of all heads: n is a multiple of 16.
  void (*quantize_values)(const int32_t* acc, const float* scale, float r, size_t n, int8_t* out);

  // queries (group, head_size) -> p (group, value_size).  scores: attention_scratch() of int32.
  void (*attend)(const AttentionView& view, const int8_t* queries, int32_t* scores, int32_t* p);

  // p (n) -> pq (n); returns m.  n is a multiple of 32.
  int32_t (*quantize_average)(const int32_t* p, size_t n, int8_t* pq);

  // x = clamp(x + rint(f(acc) * factor * scale)); n is a multiple of 32.
  void (*add_product)(const int32_t* acc, const float* scale, float factor, size_t n, int32_t* x);

  // The squared ReLU: acc (n) -> hq (n); returns m.  n is a multiple of 32; acc is overwritten.
  int32_t (*activate)(int32_t* acc, const float* scale, size_t n, uint8_t* hq);

  // acc (n) -> logits (n); n is a multiple of 32.
  void (*make_logits)(const int32_t* acc, const float* scale, float r, size_t n, int32_t* logits);
};

// Room for the scores of one query and the exponentials (int16) of two, in int32.
inline constexpr size_t attention_scratch(size_t padded_slots) { return 2 * padded_slots; }

const StageKernels& stage_kernels(Kernel kernel);

extern const StageKernels kStagesPortable;
#if defined(__x86_64__)
extern const StageKernels kStagesAvx2;
extern const StageKernels kStagesVnni;
#elif defined(__aarch64__)
extern const StageKernels kStagesNeon;
#endif

}  // namespace lmzip

// llama_stages.h: everything of docs/numerics-llama.md between the products, row by row.
//
// As with dot.h, every kernel gives the same numbers.  Lengths are multiples of 16.  Keys of a head
// lie in the cache as (slots / 16, head_dim / 4, 16, 4), values as (slots / 4, head_dim, 4).
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu.h"

namespace lmzip {

inline constexpr size_t kLlamaSlotStep = 16;
inline constexpr int32_t kLlamaResidualMax = (1 << 30) - 64;
inline constexpr int32_t kLlamaLogitMax = 1 << 20;
inline constexpr size_t kSigmoidSize = 8192;
inline constexpr size_t kMaxHeadDim = 256;
inline constexpr size_t kLlamaHeadsTogether = 4;
inline constexpr float kTiny = 0x1p-100f;

// Section 2: the greatest input for which a product of so many inputs cannot overflow.
constexpr int32_t wide_limit(size_t inputs, int32_t most) {
  const auto fits = static_cast<int32_t>(0x7FFFFFFF / (127 * static_cast<int64_t>(inputs)));
  return fits < most ? fits : most;
}

// Some heads of one lane that share keys and values, which are read once for all of them.  Valid
// are the first `sinks` of sink_slots (0 or 16) slots, and the first `ring` of those behind; far
// queries meet the first, near ones the others.
struct LlamaAttention {
  const int8_t* keys;
  const int8_t* values;
  const float* key_scales;    // (slots)
  const float* value_scales;  // (slots)
  size_t sinks, sink_slots, ring;
  size_t head_dim;
  int32_t weight_limit;
  size_t heads;                           // 1 to kLlamaHeadsTogether
  const int8_t *far, *near;               // (heads, head_dim)
  const float *far_scales, *near_scales;  // (heads)
  const int8_t* next;                     // keys that will be read after this call

  size_t slots() const { return sink_slots + (ring + 15) / 16 * 16; }
};

// Numbers of 32 bits that attend() needs for so many slots: scores and weights (16 bits) of all
// heads, exponentials of one, sums.
inline constexpr size_t llama_attention_scratch(size_t slots) {
  return (kLlamaHeadsTogether + kLlamaHeadsTogether / 2 + 1) * slots +
         kLlamaHeadsTogether * kMaxHeadDim;
}

struct LlamaStages {
  // x = rint(f(row) * scale)
  void (*embed)(const int8_t* row, float scale, size_t n, int32_t* x);
  // y = f(x) * gain, or f(x) where gain is null; returns the largest magnitude
  float (*scale)(const int32_t* x, const float* gain, size_t n, float* y);
  // the largest magnitude of y
  float (*largest)(const float* y, size_t n);
  // the largest magnitude of x, which lies in +-(2^31 - 1)
  int32_t (*peak)(const int32_t* x, size_t n);
  // the sum of (x >> shift)^2, which lies below 2^63
  int64_t (*squares)(const int32_t* x, int shift, size_t n);
  // quantize of section 4, given m: to int8 for limit 127, else to int16; returns the scale r
  float (*quantize)(const float* y, float m, int32_t limit, size_t n, void* q);
  // u = rint((f(acc) * r) * s) + bias
  void (*heads)(const int32_t* acc, float r, const float* s, const int32_t* bias, size_t n,
                int32_t* u);
  // one head of 2 * half channels, t of 14 bits -> int8; returns m
  int32_t (*rotate)(const int16_t* t, const int32_t* cosine, const int32_t* sine, size_t half,
                    int8_t* out);
  // the heads' averages -> p (heads, head_dim)
  void (*attend)(const LlamaAttention& view, int32_t* scratch, float* p);
  // x = clamp(x + rint((f(acc) * r) * s))
  void (*add)(const int32_t* acc, float r, const float* s, size_t n, int32_t* x);
  // h; returns its largest magnitude
  float (*gate)(const int32_t* gate, const int32_t* up, float r, const float* gate_scale,
                const float* up_scale, const uint16_t* sigmoid, size_t n, float* h);
  // rint((f(acc) * r) * s, +-kLlamaLogitMax)
  void (*logits)(const int32_t* acc, float r, const float* s, size_t n, int32_t* out);
};

const LlamaStages& llama_stages(Kernel kernel);

extern const LlamaStages kLlamaStagesPortable;
#if defined(__x86_64__)
extern const LlamaStages kLlamaStagesAvx2;
extern const LlamaStages kLlamaStagesVnni;
#endif

}  // namespace lmzip

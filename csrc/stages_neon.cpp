// stages_neon.cpp: stages.h for AArch64.
#include <arm_neon.h>

#include "stages_impl.h"

namespace lmzip {
namespace {

struct Neon {
  static constexpr size_t kLanes = 8;
  struct Int {
    int32x4_t a, b;
  };
  struct Float {
    float32x4_t a, b;
  };

  static Int splat(int32_t v) { return {vdupq_n_s32(v), vdupq_n_s32(v)}; }
  static Float splat(float v) { return {vdupq_n_f32(v), vdupq_n_f32(v)}; }
  static Int load(const int32_t* p) { return {vld1q_s32(p), vld1q_s32(p + 4)}; }
  static Float load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
  static Int load_int8(const int8_t* p) {
    const int16x8_t v = vmovl_s8(vld1_s8(p));
    return {vmovl_s16(vget_low_s16(v)), vmovl_high_s16(v)};
  }
  static void store(int32_t* p, Int v) { vst1q_s32(p, v.a), vst1q_s32(p + 4, v.b); }

  static int16x8_t to_16(Int v) { return vcombine_s16(vmovn_s32(v.a), vmovn_s32(v.b)); }
  static void store_int16(int16_t* p, const Int (&v)[4]) {
    for (size_t i = 0; i < 4; ++i) vst1q_s16(p + 8 * i, to_16(v[i]));
  }
  static void store_int8(int8_t* p, Int v) { vst1_s8(p, vmovn_s16(to_16(v))); }
  static void store_int8(int8_t* p, const Int (&v)[4]) {
    for (size_t i = 0; i < 4; ++i) store_int8(p + 8 * i, v[i]);
  }
  static void store_uint8(uint8_t* p, const Int (&v)[4]) {
    store_int8(reinterpret_cast<int8_t*>(p), v);
  }

  static Float to_float(Int v) { return {vcvtq_f32_s32(v.a), vcvtq_f32_s32(v.b)}; }
  static Int round(Float v) { return {vcvtnq_s32_f32(v.a), vcvtnq_s32_f32(v.b)}; }
  static Int add(Int v, Int w) { return {vaddq_s32(v.a, w.a), vaddq_s32(v.b, w.b)}; }
  static Int sub(Int v, Int w) { return {vsubq_s32(v.a, w.a), vsubq_s32(v.b, w.b)}; }
  static Int mul(Int v, Int w) { return {vmulq_s32(v.a, w.a), vmulq_s32(v.b, w.b)}; }
  static Float mul(Float v, Float w) { return {vmulq_f32(v.a, w.a), vmulq_f32(v.b, w.b)}; }
  static Int min(Int v, Int w) { return {vminq_s32(v.a, w.a), vminq_s32(v.b, w.b)}; }
  static Int max(Int v, Int w) { return {vmaxq_s32(v.a, w.a), vmaxq_s32(v.b, w.b)}; }
  static Float min(Float v, Float w) { return {vminq_f32(v.a, w.a), vminq_f32(v.b, w.b)}; }
  static Float max(Float v, Float w) { return {vmaxq_f32(v.a, w.a), vmaxq_f32(v.b, w.b)}; }
  static Int abs(Int v) { return {vabsq_s32(v.a), vabsq_s32(v.b)}; }
  static Int shift_left(Int v, int32_t bits) {
    return {vshlq_s32(v.a, vdupq_n_s32(bits)), vshlq_s32(v.b, vdupq_n_s32(bits))};
  }
  static Int add_squares(Int sum, Int v, Int w) {
    return {vmlaq_s32(vmlaq_s32(sum.a, v.a, v.a), w.a, w.a),
            vmlaq_s32(vmlaq_s32(sum.b, v.b, v.b), w.b, w.b)};
  }
  static int32_t greatest(Int v) { return vmaxvq_s32(vmaxq_s32(v.a, v.b)); }
  static int64_t sum(Int v) { return vaddvq_s32(vaddq_s32(v.a, v.b)); }
  static float sqrt(float v) { return vget_lane_f32(vsqrt_f32(vdup_n_f32(v)), 0); }
};

using NeonStages = Stages<Neon>;

// Four products of eight slots: the keys of four channels against those of the query.
struct SlotSums {
  int32x4_t s[4];  // two slots each, two sums a slot
  void add(const int8_t* keys, int8x8_t query) {
    for (size_t i = 0; i < 4; ++i) s[i] = vpadalq_s16(s[i], vmull_s8(vld1_s8(keys + 8 * i), query));
  }
};

int32_t score_all(const AttentionView& view, const int8_t* query, int32_t* scores) {
  for (size_t j = 0; j < view.slots; j += 8) {
    const int8_t* keys = view.keys + j * view.head_size;
    SlotSums sums = {};
    for (size_t c = 0; c < view.head_size; c += 4) {
      int32_t word;
      __builtin_memcpy(&word, query + c, 4);
      sums.add(keys + 8 * c, vreinterpret_s8_s32(vdup_n_s32(word)));
    }
    vst1q_s32(scores + j, vpaddq_s32(sums.s[0], sums.s[1]));
    vst1q_s32(scores + j + 4, vpaddq_s32(sums.s[2], sums.s[3]));
  }
  int32_t m = scores[0];
  for (size_t j = 1; j < view.slots; ++j) m = scores[j] > m ? scores[j] : m;
  return m;
}

uint32x4_t exponentials(const int32_t* scores, int32_t m, int32_t softmax) {
  alignas(16) static constexpr uint8_t kExp8[16] = {255, 244, 234, 224, 214, 205, 197, 188,
                                                    180, 173, 165, 158, 152, 145, 139, 133};
  const int32x4_t gap =
      vminq_s32(vsubq_s32(vdupq_n_s32(m), vld1q_s32(scores)), vdupq_n_s32((1 << 19) - 1));
  const int32x4_t a = vshrq_n_s32(vmulq_n_s32(gap, softmax), 16);
  // The upper three bytes of each lane index past the table, which gives zero.
  const uint32x4_t index =
      vorrq_u32(vandq_u32(vreinterpretq_u32_s32(a), vdupq_n_u32(15)), vdupq_n_u32(0x80808000));
  const uint8x16_t e = vqtbl1q_u8(vld1q_u8(kExp8), vreinterpretq_u8_u32(index));
  // USHL counts by the low byte of the lane: 8 and more are all the same here, so 31 will do.
  const int32x4_t count = vminq_s32(vshrq_n_s32(a, 4), vdupq_n_s32(31));
  return vshlq_u32(vreinterpretq_u32_u8(e), vnegq_s32(count));
}

int32_t weigh_all(const int32_t* scores, size_t slots, int32_t m, int32_t softmax, int16_t* e) {
  const size_t padded = (slots + kSlotStep - 1) / kSlotStep * kSlotStep;
  for (size_t j = 0; j < padded; j += 4)
    vst1_s16(e + j, vreinterpret_s16_u16(vmovn_u32(exponentials(scores + j, m, softmax))));
  for (size_t j = slots; j < padded; ++j) e[j] = 0;
  int32_t sum = 0;
  for (size_t j = 0; j < slots; ++j) sum += e[j];
  return sum;
}

// o (value_size), 16 channels at a time.
void add_values(const AttentionView& view, const int16_t* e, int32_t* o) {
  for (size_t c = 0; c < view.value_size; c += 16) {
    int32x4_t sums[8] = {};  // two channels each, two sums a channel
    for (size_t j = 0; j < view.slots; j += 2) {
      int32_t pair;
      __builtin_memcpy(&pair, e + j, 4);
      if (pair == 0) continue;
      const int16x4_t weight = vreinterpret_s16_s32(vdup_n_s32(pair));
      const int8_t* values = view.values + j * view.value_size + 2 * c;
      for (size_t i = 0; i < 4; ++i) {
        const int16x8_t v = vmovl_s8(vld1_s8(values + 8 * i));
        sums[2 * i] = vmlal_s16(sums[2 * i], vget_low_s16(v), weight);
        sums[2 * i + 1] = vmlal_high_s16(sums[2 * i + 1], v, vcombine_s16(weight, weight));
      }
    }
    for (size_t i = 0; i < 4; ++i)
      vst1q_s32(o + c + 4 * i, vpaddq_s32(sums[2 * i], sums[2 * i + 1]));
  }
}

void attend(const AttentionView& view, const int8_t* queries, int32_t* scores, int32_t* p) {
  const size_t padded = (view.slots + kSlotStep - 1) / kSlotStep * kSlotStep;
  auto* e = reinterpret_cast<int16_t*>(scores + padded);
  for (size_t h = 0; h < view.group; ++h) {
    const int32_t m = score_all(view, queries + h * view.head_size, scores);
    const int32_t normalizer = weigh_all(scores, view.slots, m, view.softmax[h], e);
    int32_t o[128];
    add_values(view, e, o);
    NeonStages::average(o, normalizer, view.value_size, p + h * view.value_size);
  }
}

}  // namespace

const StageKernels kStagesNeon = NeonStages::kernels(8, 2, attend);

}  // namespace lmzip

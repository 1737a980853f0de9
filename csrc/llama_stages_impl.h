// llama_stages_impl.h: llama_stages.h written once for every vector type S of 32-bit lanes.
//
// Included by llama_stages_portable.cpp, ... each of which defines its own S in an unnamed
// namespace, so that no two files share an instantiation.  Each float operation of S is one IEEE
// operation.
#pragma once
#include "llama_stages.h"

namespace lmzip {

template <class S>
struct LlamaStagesOf {
  using Int = typename S::Int;
  using Float = typename S::Float;
  using Long = typename S::Long;               // sums of 64 bits, as many as S likes
  static constexpr size_t kLanes = S::kLanes;  // 8 or 16
  static constexpr int32_t kNever = -(1 << 30);

  // round(65535 * 2^(-i/32))
  alignas(64) static constexpr int32_t kExp16[32] = {
      65535, 64131, 62757, 61412, 60096, 58808, 57548, 56315, 55108, 53927, 52772,
      51641, 50534, 49452, 48392, 47355, 46340, 45347, 44376, 43425, 42494, 41584,
      40693, 39821, 38967, 38132, 37315, 36516, 35733, 34968, 34218, 33485};

  // rint of the document.
  static Int rint(Float a, float low, float high) {
    return S::round(S::min(S::max(a, S::splat(low)), S::splat(high)));
  }
  static Float load_float(const int32_t* p) { return S::to_float(S::load(p)); }

  static void embed(const int8_t* row, float scale, size_t n, int32_t* x) {
    const Float factor = S::splat(scale);
    constexpr float kMax = kLlamaResidualMax;
    for (size_t i = 0; i < n; i += kLanes)
      S::store(x + i, rint(S::mul(S::to_float(S::load_int8(row + i)), factor), -kMax, kMax));
  }

  static float scale(const int32_t* x, const float* gain, size_t n, float* y) {
    Float m = S::splat(0.0f);
    for (size_t i = 0; i < n; i += kLanes) {
      Float v = load_float(x + i);
      if (gain != nullptr) v = S::mul(v, S::load(gain + i));
      m = S::max(m, S::abs(v));
      S::store(y + i, v);
    }
    return S::greatest(m);
  }

  static float largest(const float* y, size_t n) {
    Float m = S::splat(0.0f);
    for (size_t i = 0; i < n; i += kLanes) m = S::max(m, S::abs(S::load(y + i)));
    return S::greatest(m);
  }

  static int32_t peak(const int32_t* x, size_t n) {
    Int m = S::splat(0);
    for (size_t i = 0; i < n; i += kLanes) m = S::max(m, S::abs(S::load(x + i)));
    return S::greatest(m);
  }

  // No square is negative, so no part of the sum is greater than the whole.
  static int64_t squares(const int32_t* x, int shift, size_t n) {
    const Int by = S::splat(int32_t{shift});
    Long sum = S::zero();
    for (size_t i = 0; i < n; i += kLanes)
      sum = S::add_squares(sum, S::shift_right(S::load(x + i), by));
    return S::sum(sum);
  }

  // limit / m is off by less than 2^-24 of itself, so abs(y) * (limit / m) rounds to limit or less.
  static float quantize(const float* y, float m, int32_t limit, size_t n, void* q) {
    const bool zero = m < kTiny;
    const auto most = static_cast<float>(limit);
    const Float inverse = S::splat(zero ? 0.0f : most / m);
    for (size_t i = 0; i < n; i += kLanes) {
      const Int v = S::round(S::mul(S::load(y + i), inverse));
      if (limit == 127) {
        S::store_int8(static_cast<int8_t*>(q) + i, v);
      } else {
        S::store_int16(static_cast<int16_t*>(q) + i, v);
      }
    }
    return zero ? 0.0f : m / most;
  }

  static void heads(const int32_t* acc, float r, const float* s, const int32_t* bias, size_t n,
                    int32_t* u) {
    const Float row = S::splat(r);
    for (size_t i = 0; i < n; i += kLanes) {
      const Float y = S::mul(S::mul(load_float(acc + i), row), S::load(s + i));
      S::store(u + i, S::add(rint(y, -0x1p24f, 0x1p24f), S::load(bias + i)));
    }
  }

  static int32_t rotate(const int16_t* t, const int32_t* cosine, const int32_t* sine, size_t half,
                        int8_t* out) {
    alignas(64) int32_t v[kMaxHeadDim];
    Int m = S::splat(0);
    for (size_t j = 0; j < half; j += kLanes) {
      const Int a = S::load_int16(t + j), b = S::load_int16(t + half + j);
      const Int c = S::load(cosine + j), z = S::load(sine + j);
      const Int first = S::sub(S::mul(a, c), S::mul(b, z));
      const Int second = S::add(S::mul(b, c), S::mul(a, z));
      m = S::max(m, S::max(S::abs(first), S::abs(second)));
      S::store(v + j, first);
      S::store(v + half + j, second);
    }
    const int32_t most = S::greatest(m);
    const Float inverse = S::splat(127.0f / static_cast<float>(most > 1 ? most : 1));
    for (size_t j = 0; j < 2 * half; j += kLanes)
      S::store_int8(out + j, S::round(S::mul(load_float(v + j), inverse)));
    return most;
  }

  static void attend(const LlamaAttention& view, int32_t* scratch, float* p) {
    const size_t slots = view.slots(), d = view.head_dim, heads = view.heads;
    int32_t *u = scratch, *o = u + heads * slots;
    auto* y = reinterpret_cast<float*>(o + heads * d);
    auto* high = reinterpret_cast<uint8_t*>(y + slots);
    uint8_t* low = high + heads * slots;
    if (view.sink_slots != 0)
      score(view, 0, view.sink_slots, view.sinks, view.far, view.far_scales, u);
    score(view, view.sink_slots, slots, view.sink_slots + view.ring, view.near, view.near_scales,
          u);
    float g[kLlamaHeadsTogether];
    for (size_t h = 0; h < heads; ++h)
      g[h] = weights(view, u + h * slots, slots, y, high + h * slots, low + h * slots);
    S::average(view, high, low, o);
    for (size_t h = 0; h < heads; ++h, o += d, p += d) {
      for (size_t c = 0; c < d; c += kLanes)
        S::store(p + c, S::mul(load_float(o + c), S::splat(g[h])));
    }
  }

  // u (heads, slots) of slots begin..end, of which those from `valid` on are never looked at.
  static void score(const LlamaAttention& view, size_t begin, size_t end, size_t valid,
                    const int8_t* queries, const float* query_scales, int32_t* u) {
    S::scores(view, begin, end, queries, u);
    for (size_t h = 0; h < view.heads; ++h, u += view.slots()) {
      const Float q = S::splat(query_scales[h]);
      for (size_t j = begin; j < end; j += kLanes) {
        const Float factor = S::mul(q, S::load(view.key_scales + j));
        S::store(u + j, rint(S::mul(load_float(u + j), factor), -0x1p24f, 0x1p24f));
      }
      for (size_t j = valid; j < end; ++j) u[j] = kNever;
    }
  }

  // One head's scores -> its weights, 128 high + low; returns the unit of their sums.  y: (slots).
  static float weights(const LlamaAttention& view, const int32_t* u, size_t slots, float* y,
                       uint8_t* high, uint8_t* low) {
    float m;
    const int32_t total = exponentials(view, u, slots, y, &m);
    const auto most = static_cast<float>(view.weight_limit);
    const Float inverse = S::splat(m < kTiny ? 0.0f : most / m);
    for (size_t j = 0; j < slots; j += kLanes) {
      const Int w = S::round(S::mul(S::load(y + j), inverse));
      S::store_int8(reinterpret_cast<int8_t*>(high + j), S::template shift_right<7>(w));
      S::store_int8(reinterpret_cast<int8_t*>(low + j), S::bits(w, 127));
    }
    return (m / most) / static_cast<float>(total);
  }

  // y = e * value scale and its maximum; returns the sum of e, at most 65535 * 4128 < 2^29.
  static int32_t exponentials(const LlamaAttention& view, const int32_t* u, size_t slots, float* y,
                              float* largest_y) {
    Int top = S::load(u);
    for (size_t j = kLanes; j < slots; j += kLanes) top = S::max(top, S::load(u + j));
    const Int most = S::splat(S::greatest(top));
    Int total = S::splat(0);
    Float m = S::splat(0.0f);
    for (size_t j = 0; j < slots; j += kLanes) {
      const Int gap = S::sub(most, S::load(u + j));
      const Int e = S::shift_right(S::look_up(kExp16, S::bits(gap, 31)),
                                   S::min(S::template shift_right<5>(gap), S::splat(31)));
      total = S::add(total, e);
      const Float v = S::mul(S::to_float(e), S::load(view.value_scales + j));
      m = S::max(m, v);
      S::store(y + j, v);
    }
    *largest_y = S::greatest(m);
    return S::sum(total);
  }

  static void add(const int32_t* acc, float r, const float* s, size_t n, int32_t* x) {
    const Float row = S::splat(r);
    constexpr float kMax = kLlamaResidualMax;
    const Int top = S::splat(kLlamaResidualMax), bottom = S::splat(-kLlamaResidualMax);
    for (size_t i = 0; i < n; i += kLanes) {
      const Float y = S::mul(S::mul(load_float(acc + i), row), S::load(s + i));
      const Int sum = S::add(S::load(x + i), rint(y, -kMax, kMax));
      S::store(x + i, S::min(S::max(sum, bottom), top));
    }
  }

  static float gate(const int32_t* gate, const int32_t* up, float r, const float* gate_scale,
                    const float* up_scale, const uint16_t* sigmoid, size_t n, float* h) {
    const Float row = S::splat(r);
    Float m = S::splat(0.0f);
    for (size_t i = 0; i < n; i += kLanes) {
      const Float g = S::mul(S::mul(load_float(gate + i), row), S::load(gate_scale + i));
      const Int place = rint(S::mul(g, S::splat(256.0f)), -4096.0f, 4095.0f);
      const Float t = S::to_float(S::gather(sigmoid, S::add(place, S::splat(4096))));
      const Float v = S::mul(S::mul(g, t), S::mul(load_float(up + i), S::load(up_scale + i)));
      m = S::max(m, S::abs(v));
      S::store(h + i, v);
    }
    return S::greatest(m);
  }

  static void logits(const int32_t* acc, float r, const float* s, size_t n, int32_t* out) {
    const Float row = S::splat(r);
    constexpr float kMax = kLlamaLogitMax;
    for (size_t i = 0; i < n; i += kLanes) {
      const Float y = S::mul(S::mul(load_float(acc + i), row), S::load(s + i));
      S::store(out + i, rint(y, -kMax, kMax));
    }
  }

  static constexpr LlamaStages kernels() {
    return {embed, scale,  largest, peak, squares, quantize,
            heads, rotate, attend,  add,  gate,    logits};
  }
};

}  // namespace lmzip

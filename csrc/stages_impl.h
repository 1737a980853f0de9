// stages_impl.h: stages.h written once for every vector type S of 8 or 16 lanes of 32 bits.
//
// Included by stages_portable.cpp, stages_avx2.cpp, ... each of which defines its own S in an
// unnamed namespace, so that no two files share an instantiation.  S has the types Int and Float
// and the operations used below; each float operation is one IEEE operation.  Rows are quantized
// in blocks of 32 numbers, S::store_... taking the block's registers in order.
#pragma once
#include "stages.h"

namespace lmzip {

template <class S>
struct Stages {
  using Int = typename S::Int;
  using Float = typename S::Float;
  static constexpr size_t kLanes = S::kLanes;
  static constexpr size_t kBlock = 32;
  struct Block {
    Int v[kBlock / kLanes];
  };
  template <typename Function>
  static Block block(Function register_at) {
    Block b;
    for (size_t i = 0; i < kBlock / kLanes; ++i) b.v[i] = register_at(i * kLanes);
    return b;
  }

  static void add_embedding(const int8_t* row, int32_t shift, size_t n, int32_t* x) {
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
      S::store(x + i, S::add(S::load(x + i), S::shift_left(S::load_int8(row + i), shift)));
    for (; i < n; ++i) x[i] += static_cast<int32_t>(static_cast<uint32_t>(row[i]) << shift);
  }

  static Int clamp(Int x, int32_t low, int32_t high) {
    return S::min(S::max(x, S::splat(low)), S::splat(high));
  }

  static void clamp_residual(size_t n, int32_t* x) {
    for (size_t i = 0; i < n; i += kLanes)
      S::store(x + i, clamp(S::load(x + i), -kResidualMax, kResidualMax));
  }

  // rint of the document.
  static Int rint(Float a, float low, float high) {
    return S::round(S::min(S::max(a, S::splat(low)), S::splat(high)));
  }

  static int32_t max_magnitude(const int32_t* x, size_t n) {
    Int m = S::abs(S::load(x));
    for (size_t i = kLanes; i < n; i += kLanes) m = S::max(m, S::abs(S::load(x + i)));
    return S::greatest(m);
  }

  // limit / m rounds up by less than 2^-24 of itself, so abs(x) * (limit / m) is at most
  // limit (1 + 2^-22) and rounds to limit or less: the clamp of the document changes nothing here.
  static Block quantize(const int32_t* x, Float inverse) {
    return block([=](size_t i) { return S::round(S::mul(S::to_float(S::load(x + i)), inverse)); });
  }

  // Of numbers below 2^15, in any lanes: only the sum of all lanes counts.
  static Int add_squares(Int sum, const Block& b) {
    for (size_t i = 0; i < kBlock / kLanes; i += 2) sum = S::add_squares(sum, b.v[i], b.v[i + 1]);
    return sum;
  }

  static float root_mean_scale(size_t n, int64_t sum) {
    return S::sqrt(static_cast<float>(n) / static_cast<float>(sum));
  }

  static float quantize_row(const int32_t* x, size_t n, int8_t* xq) {
    const int32_t m = max_magnitude(x, n);
    const Float inverse = S::splat(127.0f / static_cast<float>(m > 1 ? m : 1));
    Int squares = S::splat(0);
    for (size_t i = 0; i < n; i += kBlock) {
      const Block b = quantize(x + i, inverse);
      squares = add_squares(squares, b);
      S::store_int8(xq + i, b.v);
    }
    return m == 0 ? 0.0f : root_mean_scale(n, S::sum(squares));
  }

  static float quantize_row_14(const int32_t* x, size_t n, int16_t* xq) {
    const int32_t m = max_magnitude(x, n);
    const Float inverse = S::splat(8191.0f / static_cast<float>(m > 1 ? m : 1));
    int64_t total = 0;
    for (size_t i = 0; i < n; i += kBlock) {
      const Block b = quantize(x + i, inverse);
      total += S::sum(add_squares(S::splat(0), b));  // kBlock * 8191^2 < 2^31
      S::store_int16(xq + i, b.v);
    }
    return m == 0 ? 0.0f : root_mean_scale(n, total);
  }

  static Int scaled(const int32_t* acc, const float* scale, float low, float high) {
    return rint(S::mul(S::to_float(S::load(acc)), S::load(scale)), low, high);
  }

  static void rotate(const int32_t* acc, const float* scale, const int32_t* cosine,
                     const int32_t* sine, size_t half, float d, int8_t* out) {
    int32_t u[2 * 64];
    Int squares = S::splat(0);
    for (size_t j = 0; j < half; j += kLanes) {
      const Int even = scaled(acc + j, scale + j, -4095.0f, 4095.0f);
      const Int odd = scaled(acc + half + j, scale + half + j, -4095.0f, 4095.0f);
      squares = S::add_squares(squares, even, odd);
      S::store(u + j, even);
      S::store(u + half + j, odd);
    }
    const int64_t sum = S::sum(squares);
    const float g = sum == 0 ? 0.0f : S::sqrt(d / static_cast<float>(sum)) * 0x1p-9f;
    for (size_t j = 0; j < half; j += kLanes) {
      const Int even = S::load(u + j), odd = S::load(u + half + j);
      const Int c = S::load(cosine + j), z = S::load(sine + j);
      const Int v0 = S::sub(S::mul(even, c), S::mul(odd, z));
      const Int v1 = S::add(S::mul(even, z), S::mul(odd, c));
      S::store_int8(out + j, rint(S::mul(S::to_float(v0), S::splat(g)), -127.0f, 127.0f));
      S::store_int8(out + half + j, rint(S::mul(S::to_float(v1), S::splat(g)), -127.0f, 127.0f));
    }
  }

  static void quantize_values(const int32_t* acc, const float* scale, float r, size_t n,
                              int8_t* out) {
    for (size_t i = 0; i < n; i += kLanes) {
      const Float v =
          S::mul(S::mul(S::to_float(S::load(acc + i)), S::splat(r)), S::load(scale + i));
      S::store_int8(out + i, rint(v, -127.0f, 127.0f));
    }
  }

  static int32_t quantize_average(const int32_t* p, size_t n, int8_t* pq) {
    const int32_t m = max_magnitude(p, n);
    const Float inverse = S::splat(127.0f / static_cast<float>(m > 1 ? m : 1));
    for (size_t i = 0; i < n; i += kBlock) S::store_int8(pq + i, quantize(p + i, inverse).v);
    return m;
  }

  static void add_product(const int32_t* acc, const float* scale, float factor, size_t n,
                          int32_t* x) {
    constexpr auto kMax = static_cast<float>(kResidualMax);
    for (size_t i = 0; i < n; i += kLanes) {
      const Float y =
          S::mul(S::mul(S::to_float(S::load(acc + i)), S::splat(factor)), S::load(scale + i));
      S::store(x + i,
               clamp(S::add(S::load(x + i), rint(y, -kMax, kMax)), -kResidualMax, kResidualMax));
    }
  }

  // f(u * u) is f(u) * f(u), both the exact square rounded once.
  static Int quantize_square(const int32_t* u, Float inverse) {
    const Float a = S::to_float(S::load(u));
    return S::round(S::mul(S::mul(a, a), inverse));
  }

  static int32_t activate(int32_t* acc, const float* scale, size_t n, uint8_t* hq) {
    Int greatest = S::splat(0);
    for (size_t i = 0; i < n; i += kLanes) {
      const Int u = scaled(acc + i, scale + i, 0.0f, 32767.0f);
      greatest = S::max(greatest, u);
      S::store(acc + i, u);
    }
    const int32_t u_max = S::greatest(greatest);
    const int32_t m = u_max * u_max;
    const Float inverse = S::splat(255.0f / static_cast<float>(m > 1 ? m : 1));
    for (size_t i = 0; i < n; i += kBlock) {
      const Block b = block([=](size_t j) { return quantize_square(acc + i + j, inverse); });
      S::store_uint8(hq + i, b.v);
    }
    return m;
  }

  static void make_logits(const int32_t* acc, const float* scale, float r, size_t n,
                          int32_t* logits) {
    constexpr auto kMax = static_cast<float>(kLogitMax);
    for (size_t i = 0; i < n; i += kLanes) {
      const Float y =
          S::mul(S::mul(S::to_float(S::load(acc + i)), S::splat(r)), S::load(scale + i));
      S::store(logits + i, rint(y, -kMax, kMax));
    }
  }

  // p of the document, from o and the normalizer.
  static void average(const int32_t* o, int32_t normalizer, size_t n, int32_t* p) {
    const Float inverse = S::splat(256.0f / static_cast<float>(normalizer));
    for (size_t i = 0; i < n; i += kLanes)
      S::store(p + i, rint(S::mul(S::to_float(S::load(o + i)), inverse), -32767.0f, 32767.0f));
  }

  static constexpr StageKernels kernels(size_t key_slots, size_t value_slots,
                                        void (*attend)(const AttentionView&, const int8_t*,
                                                       int32_t*, int32_t*)) {
    return {key_slots,       value_slots, add_embedding,   clamp_residual, quantize_row,
            quantize_row_14, rotate,      quantize_values, attend,         quantize_average,
            add_product,     activate,    make_logits};
  }
};

}  // namespace lmzip

// llama_stages_portable.cpp: llama_stages.h in plain C++, and the choice.
#include <cmath>

#include "llama_stages_impl.h"

namespace lmzip {
namespace {

// Eight lanes as arrays; compilers turn the loops into what the baseline of the machine has.
struct Plain {
  static constexpr size_t kLanes = 8;
  struct Int {
    int32_t v[kLanes];
  };
  struct Float {
    float v[kLanes];
  };
  struct Long {
    int64_t v[kLanes];
  };

  template <typename To, typename Function>
  static To map(Function f) {
    To out;
    for (size_t i = 0; i < kLanes; ++i) out.v[i] = f(i);
    return out;
  }
  template <typename Function>
  static Int ints(Function f) {
    return map<Int>(f);
  }
  template <typename Function>
  static Float floats(Function f) {
    return map<Float>(f);
  }

  static Int splat(int32_t a) {
    return ints([=](size_t) { return a; });
  }
  static Float splat(float a) {
    return floats([=](size_t) { return a; });
  }
  static Int load(const int32_t* p) {
    return ints([=](size_t i) { return p[i]; });
  }
  static Float load(const float* p) {
    return floats([=](size_t i) { return p[i]; });
  }
  static Int load_int8(const int8_t* p) {
    return ints([=](size_t i) { return int32_t{p[i]}; });
  }
  static Int load_int16(const int16_t* p) {
    return ints([=](size_t i) { return int32_t{p[i]}; });
  }
  static void store(int32_t* p, const Int& a) {
    for (size_t i = 0; i < kLanes; ++i) p[i] = a.v[i];
  }
  static void store(float* p, const Float& a) {
    for (size_t i = 0; i < kLanes; ++i) p[i] = a.v[i];
  }
  static void store_int8(int8_t* p, const Int& a) {
    for (size_t i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(a.v[i]);
  }
  static void store_int16(int16_t* p, const Int& a) {
    for (size_t i = 0; i < kLanes; ++i) p[i] = static_cast<int16_t>(a.v[i]);
  }

  static Float to_float(const Int& a) {
    return floats([&](size_t i) { return static_cast<float>(a.v[i]); });
  }
  static Int round(const Float& a) {
    return ints([&](size_t i) { return static_cast<int32_t>(std::lrint(a.v[i])); });
  }
  static Int add(const Int& a, const Int& b) {
    return ints([&](size_t i) { return a.v[i] + b.v[i]; });
  }
  static Int sub(const Int& a, const Int& b) {
    return ints([&](size_t i) { return a.v[i] - b.v[i]; });
  }
  static Int mul(const Int& a, const Int& b) {
    return ints([&](size_t i) { return a.v[i] * b.v[i]; });
  }
  static Float mul(const Float& a, const Float& b) {
    return floats([&](size_t i) { return a.v[i] * b.v[i]; });
  }
  static Int min(const Int& a, const Int& b) {
    return ints([&](size_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static Int max(const Int& a, const Int& b) {
    return ints([&](size_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static Float min(const Float& a, const Float& b) {
    return floats([&](size_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static Float max(const Float& a, const Float& b) {
    return floats([&](size_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static Int abs(const Int& a) {
    return ints([&](size_t i) { return a.v[i] < 0 ? -a.v[i] : a.v[i]; });
  }
  static Float abs(const Float& a) {
    return floats([&](size_t i) { return std::fabs(a.v[i]); });
  }
  static Int bits(const Int& a, int32_t mask) {
    return ints([&](size_t i) { return a.v[i] & mask; });
  }
  template <int kBits>
  static Int shift_right(const Int& a) {
    return ints([&](size_t i) { return a.v[i] >> kBits; });
  }
  static Int shift_right(const Int& a, const Int& by) {
    return ints([&](size_t i) { return a.v[i] >> by.v[i]; });
  }
  static Int look_up(const int32_t (&table)[32], const Int& place) {
    return ints([&](size_t i) { return table[place.v[i]]; });
  }
  static Int gather(const uint16_t* table, const Int& place) {
    return ints([&](size_t i) { return int32_t{table[place.v[i]]}; });
  }
  static int32_t greatest(const Int& a) {
    int32_t m = a.v[0];
    for (const int32_t v : a.v) m = v > m ? v : m;
    return m;
  }
  static float greatest(const Float& a) {
    float m = a.v[0];
    for (const float v : a.v) m = v > m ? v : m;
    return m;
  }
  static int32_t sum(const Int& a) {
    int32_t total = 0;
    for (const int32_t v : a.v) total += v;
    return total;
  }

  static Long zero() {
    return map<Long>([](size_t) { return int64_t{0}; });
  }
  static Long add_squares(const Long& sum, const Int& a) {
    return map<Long>([&](size_t i) { return sum.v[i] + int64_t{a.v[i]} * a.v[i]; });
  }
  static int64_t sum(const Long& a) {
    int64_t total = 0;
    for (const int64_t v : a.v) total += v;
    return total;
  }

  static void scores(const LlamaAttention& view, size_t begin, size_t end, const int8_t* queries,
                     int32_t* u) {
    const size_t d = view.head_dim;
    for (size_t h = 0; h < view.heads; ++h, queries += d, u += view.slots()) {
      for (size_t j = begin; j < end; ++j) {
        const int8_t* key = view.keys + j / 16 * 16 * d + j % 16 * 4;
        int32_t sum = 0;
        for (size_t c = 0; c < d; ++c) sum += int32_t{queries[c]} * key[c / 4 * 64 + c % 4];
        u[j] = sum;
      }
    }
  }

  static void average(const LlamaAttention& view, const uint8_t* high, const uint8_t* low,
                      int32_t* o) {
    const size_t slots = view.slots(), d = view.head_dim;
    for (size_t h = 0; h < view.heads; ++h, high += slots, low += slots, o += d) {
      for (size_t c = 0; c < d; ++c) o[c] = 0;
      for (size_t j = 0; j < slots; ++j) {
        const int32_t w = high[j] << 7 | low[j];
        const int8_t* value = view.values + j / 4 * 4 * d + j % 4;
        for (size_t c = 0; c < d; ++c) o[c] += w * value[4 * c];
      }
    }
  }
};

}  // namespace

const LlamaStages kLlamaStagesPortable = LlamaStagesOf<Plain>::kernels();

const LlamaStages& llama_stages([[maybe_unused]] Kernel kernel) {
#if defined(__x86_64__)
  if (kernel >= Kernel::kVnni) return kLlamaStagesVnni;
  if (kernel >= Kernel::kAvx2) return kLlamaStagesAvx2;
#endif
  return kLlamaStagesPortable;
}

}  // namespace lmzip

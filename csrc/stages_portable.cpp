// stages_portable.cpp: stages.h in plain C++, and the choice.
#include <cmath>

#include "stages_impl.h"

namespace lmzip {
namespace {

// Eight lanes as arrays; compilers turn the loops into what the baseline of the machine has.
struct Plain {
  static constexpr size_t kLanes = 8;
  struct Int {
    int32_t v[8];
  };
  struct Float {
    float v[8];
  };

  template <typename To, typename Function>
  static To map(Function f) {
    To out;
    for (size_t i = 0; i < 8; ++i) out.v[i] = f(i);
    return out;
  }

  static Int splat(int32_t a) {
    return map<Int>([=](size_t) { return a; });
  }
  static Float splat(float a) {
    return map<Float>([=](size_t) { return a; });
  }
  static Int load(const int32_t* p) {
    return map<Int>([=](size_t i) { return p[i]; });
  }
  static Float load(const float* p) {
    return map<Float>([=](size_t i) { return p[i]; });
  }
  static Int load_int8(const int8_t* p) {
    return map<Int>([=](size_t i) { return int32_t{p[i]}; });
  }
  static void store(int32_t* p, const Int& a) {
    for (size_t i = 0; i < 8; ++i) p[i] = a.v[i];
  }
  template <typename T>
  static void narrow(T* p, const Int& a) {
    for (size_t i = 0; i < 8; ++i) p[i] = static_cast<T>(a.v[i]);
  }
  static void store_int8(int8_t* p, const Int& a) { narrow(p, a); }
  template <typename T>
  static void narrow(T* p, const Int (&v)[4]) {
    for (size_t i = 0; i < 4; ++i) narrow(p + 8 * i, v[i]);
  }
  static void store_int8(int8_t* p, const Int (&v)[4]) { narrow(p, v); }
  static void store_uint8(uint8_t* p, const Int (&v)[4]) { narrow(p, v); }
  static void store_int16(int16_t* p, const Int (&v)[4]) { narrow(p, v); }

  static Float to_float(const Int& a) {
    return map<Float>([&](size_t i) { return static_cast<float>(a.v[i]); });
  }
  static Int round(const Float& a) {
    return map<Int>([&](size_t i) { return static_cast<int32_t>(std::lrint(a.v[i])); });
  }

  static Int add(const Int& a, const Int& b) {
    return map<Int>([&](size_t i) { return a.v[i] + b.v[i]; });
  }
  static Int sub(const Int& a, const Int& b) {
    return map<Int>([&](size_t i) { return a.v[i] - b.v[i]; });
  }
  static Int mul(const Int& a, const Int& b) {
    return map<Int>([&](size_t i) { return a.v[i] * b.v[i]; });
  }
  static Float mul(const Float& a, const Float& b) {
    return map<Float>([&](size_t i) { return a.v[i] * b.v[i]; });
  }
  template <typename T>
  static T min(const T& a, const T& b) {
    return map<T>([&](size_t i) { return b.v[i] < a.v[i] ? b.v[i] : a.v[i]; });
  }
  template <typename T>
  static T max(const T& a, const T& b) {
    return map<T>([&](size_t i) { return a.v[i] < b.v[i] ? b.v[i] : a.v[i]; });
  }
  static Int abs(const Int& a) {
    return map<Int>([&](size_t i) { return a.v[i] < 0 ? -a.v[i] : a.v[i]; });
  }
  static Int shift_left(const Int& a, int32_t bits) {
    return map<Int>(
        [&](size_t i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << bits); });
  }
  // Lane by lane, or in pairs: only the sum of all lanes counts.
  static Int add_squares(const Int& sum, const Int& a, const Int& b) {
    return map<Int>([&](size_t i) { return sum.v[i] + a.v[i] * a.v[i] + b.v[i] * b.v[i]; });
  }

  static int32_t greatest(const Int& a) {
    int32_t m = a.v[0];
    for (size_t i = 1; i < 8; ++i) m = a.v[i] > m ? a.v[i] : m;
    return m;
  }
  static int64_t sum(const Int& a) {
    int64_t total = 0;
    for (size_t i = 0; i < 8; ++i) total += a.v[i];
    return total;
  }
  static float sqrt(float a) { return std::sqrt(a); }
};

using PlainStages = Stages<Plain>;

constexpr uint8_t kExp8[16] = {255, 244, 234, 224, 214, 205, 197, 188,
                               180, 173, 165, 158, 152, 145, 139, 133};

int32_t score(const AttentionView& view, const int8_t* query, size_t slot) {
  const int8_t* key = view.keys + slot / 8 * 8 * view.head_size + slot % 8 * 4;
  int32_t sum = 0;
  for (size_t c = 0; c < view.head_size; ++c)
    sum += int32_t{query[c]} * int32_t{key[c / 4 * 32 + c % 4]};
  return sum;
}

void attend_one(const AttentionView& view, const int8_t* query, int32_t softmax, int32_t* scores,
                int32_t* p) {
  int32_t m = INT32_MIN;
  for (size_t j = 0; j < view.slots; ++j) {
    scores[j] = score(view, query, j);
    m = scores[j] > m ? scores[j] : m;
  }
  int32_t normalizer = 0;
  int32_t o[128 + kValueStep] = {};
  for (size_t j = 0; j < view.slots; ++j) {
    const int32_t gap = m - scores[j] < (1 << 19) - 1 ? m - scores[j] : (1 << 19) - 1;
    const int32_t a = (gap * softmax) >> 16;
    const int32_t e = a < 128 ? kExp8[a & 15] >> (a >> 4) : 0;
    if (e == 0) continue;
    normalizer += e;
    const int8_t* value = view.values + j / 2 * 2 * view.value_size + j % 2;
    for (size_t c = 0; c < view.value_size; ++c) o[c] += e * int32_t{value[2 * c]};
  }
  PlainStages::average(o, normalizer, view.value_size, p);
}

void attend(const AttentionView& view, const int8_t* queries, int32_t* scores, int32_t* p) {
  for (size_t h = 0; h < view.group; ++h) {
    attend_one(view, queries + h * view.head_size, view.softmax[h], scores,
               p + h * view.value_size);
  }
}

}  // namespace

const StageKernels kStagesPortable = PlainStages::kernels(8, 2, attend);

const StageKernels& stage_kernels([[maybe_unused]] Kernel kernel) {
#if defined(__x86_64__)
  if (kernel >= Kernel::kVnni) return kStagesVnni;
  if (kernel >= Kernel::kAvx2) return kStagesAvx2;
#elif defined(__aarch64__)
  if (kernel >= Kernel::kNeon) return kStagesNeon;
#endif
  return kStagesPortable;
}

}  // namespace lmzip

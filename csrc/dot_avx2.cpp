// dot_avx2.cpp: dot.h for AVX2, which has no int8 product that is exact by itself.
//
// vpmaddubsw adds two products of an unsigned and a signed byte and saturates at 16 bits.  For
// inputs in [-127, 127] it is fed with |x| and with w carrying x's sign: two products are at most
// 2 * 127 * 127 = 32,258 < 2^15, so nothing saturates.  Other inputs are widened to 16 bits, as
// their weights are when they are loaded, and go through vpmaddwd, which adds in 32 bits.
//
// Weights lie in panels of 16 outputs, two registers wide: for int8 inputs (inputs / 4, 16, 4),
// else (inputs / 2, 16, 2).  A tile of two registers by four rows keeps eight sums in registers.
// Measured beside it on Zen 3: weights widened at load time to 16 bits are no faster from the
// level 1 cache and twice as slow for one row, for they stream from level 3.
#include <immintrin.h>

#include "dot.h"

namespace lmzip {
namespace {

constexpr size_t kPanel = 16;
constexpr size_t kTile = 4;  // rows

__m256i load(const void* p) { return _mm256_load_si256(static_cast<const __m256i*>(p)); }
void store(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
__m256i widen(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
}
__m256i broadcast(const void* p) {
  int32_t four_bytes;
  __builtin_memcpy(&four_bytes, p, 4);
  return _mm256_set1_epi32(four_bytes);
}

void pack(const int8_t* rows, size_t outputs, size_t inputs, Input input, int8_t* packed) {
  const size_t group = input == Input::kInt8 ? 4 : 2;
  for (size_t panel = 0; panel < outputs; panel += kPanel) {
    for (size_t k = 0; k < inputs; k += group) {
      for (size_t i = panel; i < panel + kPanel; ++i) {
        for (size_t j = 0; j < group; ++j) *packed++ = rows[i * inputs + k + j];
      }
    }
  }
}

// (rows, inputs) int8 -> (rows, inputs / 4) pairs of 32-bit words: four x, their four |x|.
void prepare_int8(const int8_t* x, size_t size, uint8_t* out) {
  for (size_t i = 0; i < size; i += 32) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
    const __m256i a = _mm256_abs_epi8(v);
    const __m256i low = _mm256_unpacklo_epi32(v, a), high = _mm256_unpackhi_epi32(v, a);
    store(out + 2 * i, _mm256_permute2x128_si256(low, high, 0x20));
    store(out + 2 * i + 32, _mm256_permute2x128_si256(low, high, 0x31));
  }
}

void prepare_uint8(const uint8_t* x, size_t size, uint8_t* out) {
  for (size_t i = 0; i < size; i += 16) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i));
    store(out + 2 * i, _mm256_cvtepu8_epi16(v));
  }
}

// One panel by `Rows` rows.  x: as prepared, two bytes an input.
template <size_t Rows>
void tile_int8(const int8_t* w, const uint8_t* x, size_t inputs, int32_t* out, size_t outputs) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[Rows][2];
  for (size_t r = 0; r < Rows; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
  for (size_t k = 0; k < inputs; k += 4, w += 4 * kPanel) {
    const __m256i w0 = load(w), w1 = load(w + 32);
    for (size_t r = 0; r < Rows; ++r) {
      const uint8_t* p = x + 2 * (r * inputs + k);
      const __m256i value = broadcast(p), magnitude = broadcast(p + 4);
      const __m256i p0 = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(w0, value));
      const __m256i p1 = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(w1, value));
      sums[r][0] = _mm256_add_epi32(sums[r][0], _mm256_madd_epi16(p0, ones));
      sums[r][1] = _mm256_add_epi32(sums[r][1], _mm256_madd_epi16(p1, ones));
    }
  }
  for (size_t r = 0; r < Rows; ++r) {
    store(out + r * outputs, sums[r][0]);
    store(out + r * outputs + 8, sums[r][1]);
  }
}

template <size_t Rows>
void tile_int16(const int8_t* w, const uint8_t* x, size_t inputs, int32_t* out, size_t outputs) {
  __m256i sums[Rows][2];
  for (size_t r = 0; r < Rows; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
  for (size_t k = 0; k < inputs; k += 2, w += 2 * kPanel) {
    const __m256i w0 = widen(w), w1 = widen(w + 16);
    for (size_t r = 0; r < Rows; ++r) {
      const __m256i value = broadcast(x + 2 * (r * inputs + k));
      sums[r][0] = _mm256_add_epi32(sums[r][0], _mm256_madd_epi16(w0, value));
      sums[r][1] = _mm256_add_epi32(sums[r][1], _mm256_madd_epi16(w1, value));
    }
  }
  for (size_t r = 0; r < Rows; ++r) {
    store(out + r * outputs, sums[r][0]);
    store(out + r * outputs + 8, sums[r][1]);
  }
}

using Tile = void (*)(const int8_t*, const uint8_t*, size_t, int32_t*, size_t);
constexpr Tile kInt8Tiles[] = {tile_int8<1>, tile_int8<2>, tile_int8<3>, tile_int8<4>};
constexpr Tile kInt16Tiles[] = {tile_int16<1>, tile_int16<2>, tile_int16<3>, tile_int16<4>};

// A panel stays in the level 1 cache while all rows pass it.
void multiply(const MatrixView& m, const void* x, size_t rows, int32_t* out, uint8_t* scratch) {
  const Tile* tiles = m.input == Input::kInt8 ? kInt8Tiles : kInt16Tiles;
  if (m.input == Input::kInt8)
    prepare_int8(static_cast<const int8_t*>(x), rows * m.inputs, scratch);
  if (m.input == Input::kUint8)
    prepare_uint8(static_cast<const uint8_t*>(x), rows * m.inputs, scratch);
  const uint8_t* prepared = m.input == Input::kInt14 ? static_cast<const uint8_t*>(x) : scratch;
  for (size_t panel = 0; panel < m.outputs; panel += kPanel) {
    const int8_t* w = m.packed + panel * m.inputs;
    for (size_t row = 0; row < rows; row += kTile) {
      const size_t count = rows - row < kTile ? rows - row : kTile;
      tiles[count - 1](w, prepared + 2 * row * m.inputs, m.inputs, out + row * m.stride + panel,
                       m.stride);
    }
  }
}

}  // namespace

const DotKernel kDotAvx2 = {pack, multiply};

}  // namespace lmzip

// dot_vnni_impl.h: dot.h with vpdpbusd, which adds four products of an unsigned and a signed byte
// in 32 bits without saturation.  Included by dot_avxvnni.cpp (256 bits) and dot_vnni.cpp (512
// bits), each of which defines its own registers V in an unnamed namespace.
//
// Inputs are made unsigned: int8 by adding 128; 14 bits as 128 hi + lo - 8192 with hi and lo in
// 0..127, two products.  What the shift adds to each sum is its multiple of the weights' sum.
// Weights lie in panels of 16 outputs: (inputs / 4, 16, 4).
//
// A tile of `Rows` rows by `Panels` panels keeps all its sums in registers: V::kSums of them,
// enough chains to hide the latency of vpdpbusd, and fewer loads than products (eight rows by two
// panels of 512 bits: ten loads for sixteen products).  Few rows take more panels instead.
#pragma once
#include "dot.h"

namespace lmzip {

template <class V>
struct VnniDot {
  using Register = typename V::Register;
  static constexpr size_t kPanel = 16;
  static constexpr size_t kRegisters = kPanel / V::kLanes;  // of a panel
  static constexpr size_t kTileRows = 8;

  // The greatest power of two of panels whose sums fit, at most 8.
  static constexpr size_t panels_for(size_t rows) {
    size_t panels = 8;
    while (panels > 1 && rows * panels * kRegisters > V::kSums) panels /= 2;
    return panels;
  }

  static void pack(const int8_t* rows, size_t outputs, size_t inputs, Input, int8_t* packed) {
    for (size_t panel = 0; panel < outputs; panel += kPanel) {
      for (size_t k = 0; k < inputs; k += 4) {
        for (size_t i = panel; i < panel + kPanel; ++i) {
          for (size_t j = 0; j < 4; ++j) *packed++ = rows[i * inputs + k + j];
        }
      }
    }
  }

  // -> out (size), for 14 bits (2, size): hi, then lo.
  static void prepare(Input input, const void* x, size_t size, uint8_t* out) {
    if (input == Input::kInt8) {
      const auto* p = static_cast<const uint8_t*>(x);
      for (size_t i = 0; i < size; ++i) out[i] = p[i] ^ 0x80;
    } else if (input == Input::kInt14) {
      const auto* p = static_cast<const int16_t*>(x);
      for (size_t i = 0; i < size; ++i) {
        const auto shifted = static_cast<uint16_t>(p[i] + 8192);
        out[i] = static_cast<uint8_t>(shifted >> 7);
        out[size + i] = shifted & 127;
      }
    }
  }

  // What a tile works on: the weights of its first panel, its first row.
  struct Tile {
    const int8_t* weights;
    size_t inputs, stride;
    const int32_t* row_sums;
    const uint8_t* x;
    const uint8_t* lo;  // null but for 14 bits
    int32_t offset;     // what was added to each input
    int32_t* out;
    bool ahead;  // whether to fetch the weights behind them, which come next
  };

  template <size_t Rows, size_t Panels, bool Ahead>
  static void add_products(const Tile& t, const uint8_t* x,
                           Register (&sums)[Rows][Panels * kRegisters]) {
    const int8_t* w = t.weights;
    for (size_t k = 0; k < t.inputs; k += 4, w += 4 * kPanel) {
      Register weights[Panels * kRegisters];
      for (size_t i = 0; i < Panels * kRegisters; ++i) {
        const int8_t* p = w + i / kRegisters * kPanel * t.inputs + i % kRegisters * 4 * V::kLanes;
        // Few rows wait for weights from the outer caches: a tenth faster on Zen 5 (from level 3).
        if (Rows <= 4) __builtin_prefetch(p + 512);
        // Into level 2: level 1 waits for too few lines at a time to keep memory busy.  Where
        // weights come from level 3, it costs up to a fifth instead.
        if (Ahead) __builtin_prefetch(p + Panels * kPanel * t.inputs, 0, 2);
        weights[i] = V::load(p);
      }
      for (size_t r = 0; r < Rows; ++r) {
        const Register value = V::broadcast(x + r * t.inputs + k);
        for (size_t i = 0; i < Panels * kRegisters; ++i)
          sums[r][i] = V::add_products(sums[r][i], value, weights[i]);
      }
    }
  }

  template <size_t Rows, size_t Panels>
  static void tile(const Tile& t) {
    constexpr size_t kCount = Panels * kRegisters;
    Register sums[Rows][kCount];
    for (size_t r = 0; r < Rows; ++r) {
      for (size_t i = 0; i < kCount; ++i) sums[r][i] = V::zero();
    }
    if (t.ahead) {
      add_products<Rows, Panels, true>(t, t.x, sums);
    } else {
      add_products<Rows, Panels, false>(t, t.x, sums);
    }
    if (t.lo != nullptr) {
      for (size_t r = 0; r < Rows; ++r) {
        for (size_t i = 0; i < kCount; ++i) sums[r][i] = V::times(sums[r][i], 128);
      }
      add_products<Rows, Panels, false>(t, t.lo, sums);
    }
    for (size_t i = 0; i < kCount; ++i) {
      const Register shift = V::times(V::load(t.row_sums + V::kLanes * i), t.offset);
      for (size_t r = 0; r < Rows; ++r)
        V::store(t.out + r * t.stride + V::kLanes * i, V::sub(sums[r][i], shift));
    }
  }

  using TileFunction = void (*)(const Tile&);

  template <size_t Rows, size_t Panels>
  static constexpr TileFunction tile_if_it_fits() {
    if constexpr (Rows * Panels * kRegisters <= V::kSums || Panels == 1) {
      return tile<Rows, Panels>;
    } else {
      return nullptr;
    }
  }

  template <size_t Panels>
  static void block(Tile t, size_t rows) {
    static constexpr TileFunction kTiles[kTileRows] = {
        tile_if_it_fits<1, Panels>(), tile_if_it_fits<2, Panels>(), tile_if_it_fits<3, Panels>(),
        tile_if_it_fits<4, Panels>(), tile_if_it_fits<5, Panels>(), tile_if_it_fits<6, Panels>(),
        tile_if_it_fits<7, Panels>(), tile_if_it_fits<8, Panels>(),
    };
    for (; rows > 0; t.ahead = false) {
      const size_t count = rows < V::kRows ? rows : V::kRows;
      kTiles[count - 1](t);
      rows -= count;
      t.x += count * t.inputs;
      if (t.lo != nullptr) t.lo += count * t.inputs;
      t.out += count * t.stride;
    }
  }

  // Panels stay in the level 1 cache while all rows pass them.
  static void multiply(const MatrixView& m, const void* x, size_t rows, int32_t* out,
                       uint8_t* scratch) {
    prepare(m.input, x, rows * m.inputs, scratch);
    const auto* ready = m.input == Input::kUint8 ? static_cast<const uint8_t*>(x) : scratch;
    const uint8_t* lo = m.input == Input::kInt14 ? scratch + rows * m.inputs : nullptr;
    const int32_t offset = m.input == Input::kInt8 ? 128 : m.input == Input::kInt14 ? 8192 : 0;
    const size_t most = panels_for(rows < V::kRows ? rows : V::kRows);
    for (size_t panel = 0; panel < m.outputs;) {
      size_t panels = most;
      while (panels * kPanel > m.outputs - panel) panels /= 2;
      const Tile t = {m.packed + panel * m.inputs,
                      m.inputs,
                      m.stride,
                      m.row_sums + panel,
                      ready,
                      lo,
                      offset,
                      out + panel,
                      m.from_memory};
      if (panels == 8) {
        block<8>(t, rows);
      } else if (panels == 4) {
        block<4>(t, rows);
      } else if (panels == 2) {
        block<2>(t, rows);
      } else {
        block<1>(t, rows);
      }
      panel += panels * kPanel;
    }
  }
};

}  // namespace lmzip

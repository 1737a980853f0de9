// dot_amx_impl.h: dot.h with the tile registers of AMX.  Included by dot_amx.cpp, whose tiles are
// the processor's, and by tests/native/engine_check.cpp, whose tiles are arrays: so the order of
// the work is tested everywhere, the instructions where they are.
//
// A tile is up to 16 rows of 64 bytes.  One instruction adds to 16 x 16 sums (rows by outputs) the
// products of 16 rows of 64 inputs with 64 inputs of a panel of weights, which it wants as
// dot_vnni_impl.h packs them: (inputs / 4, 16, 4).  It takes bytes of either sign as they are.  14
// bits are cut into 128 hi + lo, with hi in -64..63 and lo in 0..127, whose products are put
// together at the end.
//
// The instruction takes as long for one row as for 16.  Four sums at a time hide its latency: two
// tiles of rows by two panels, or one tile by four panels; hi and lo of the same rows count as two.
//
// All tiles of a call have the same number of rows, for setting tiles up costs as much as several
// products: where the rows are no multiple of 16, the last tile begins early, and some sums are
// made twice.
#pragma once
#include <utility>

#include "dot.h"

namespace lmzip {

// T, the tiles: configure(rows, inputs), release(), zero<Tile>(), load<Tile>(p, stride),
// store<Tile>(p, stride), and add_products<Unsigned, Sums, Rows, Panel>(), Unsigned being the rows;
// strides in bytes.
template <class T>
struct AmxDot {
  static constexpr size_t kPanel = 16, kTileRows = 16, kTileInputs = 64, kLine = 64;
  static constexpr int kRowTile = 4, kPanelTile = 6;  // and the next; sums are in 0 to 3

  // The work of Tiles tiles of rows by Panels panels.
  struct Block {
    const int8_t* weights;  // of the first panel
    size_t inputs, step, stride, rows;
    const int8_t* x[2];  // of each tile
    int32_t* out[2];
    size_t fetch_begin, fetch_end;  // what to fetch of each tile behind the panels, in bytes
  };

  // Inputs come in multiples of 32.
  static size_t tile_inputs(const MatrixView& m) {
    return m.inputs % kTileInputs == 0 ? kTileInputs : kTileInputs / 2;
  }

  // -> out (2, size): hi, then lo.
  static void split(const int16_t* x, size_t size, int8_t* out) {
    for (size_t i = 0; i < size; ++i) {
      out[i] = static_cast<int8_t>(x[i] >> 7);
      out[size + i] = static_cast<int8_t>(x[i] & 127);
    }
  }

  template <bool Unsigned, int Tiles, int Panels, int Panel>
  static void add_panel(const Block& b, const int8_t* w) {
    constexpr int kTile = kPanelTile + Panel % 2;
    w += Panel * kPanel * b.inputs;
    T::template load<kTile>(w, 4 * kPanel);
    const int8_t* next = w + Panels * kPanel * b.inputs;
    for (size_t i = b.fetch_begin; i < b.fetch_end; i += kLine) __builtin_prefetch(next + i, 0, 2);
    T::template add_products<Unsigned, Panel, kRowTile, kTile>();
    if constexpr (Tiles == 2)
      T::template add_products<Unsigned, Panels + Panel, kRowTile + 1, kTile>();
  }

  template <bool Split, int Tiles, int Panels, int Panel>
  static void store_panel(const Block& b) {
    int32_t* out = b.out[0] + Panel * kPanel;
    if constexpr (Split) {
      // Unsigned, for 128 hi alone may wrap.
      alignas(64) uint32_t hi[kTileRows * kPanel], lo[kTileRows * kPanel];
      T::template store<Panel>(hi, 4 * kPanel);
      T::template store<Panels + Panel>(lo, 4 * kPanel);
      for (size_t r = 0; r < b.rows; ++r) {
        for (size_t i = 0; i < kPanel; ++i)
          out[r * b.stride + i] =
              static_cast<int32_t>(128 * hi[r * kPanel + i] + lo[r * kPanel + i]);
      }
    } else {
      T::template store<Panel>(out, 4 * b.stride);
      if constexpr (Tiles == 2)
        T::template store<Panels + Panel>(b.out[1] + Panel * kPanel, 4 * b.stride);
    }
  }

  template <int... Sums>
  static void zero(std::integer_sequence<int, Sums...>) {
    (T::template zero<Sums>(), ...);
  }

  template <bool Unsigned, bool Split, int Tiles, int... Panel>
  static void multiply_block(const Block& b, std::integer_sequence<int, Panel...>) {
    constexpr int kPanels = sizeof...(Panel);
    zero(std::make_integer_sequence<int, Tiles * kPanels>());
    for (size_t k = 0; k < b.inputs; k += b.step) {
      T::template load<kRowTile>(b.x[0] + k, b.inputs);
      if constexpr (Tiles == 2) T::template load<kRowTile + 1>(b.x[1] + k, b.inputs);
      (add_panel<Unsigned, Tiles, kPanels, Panel>(b, b.weights + kPanel * k), ...);
    }
    (store_panel<Split, Tiles, kPanels, Panel>(b), ...);
  }

  // All rows by Panels panels, the first of which is given.  Split: behind x (rows, inputs), the
  // hi, comes lo.
  template <bool Unsigned, bool Split, int Tiles, int Panels>
  static void multiply_panels(const MatrixView& m, size_t panel, const int8_t* x, size_t rows,
                              int32_t* out) {
    static_assert(Tiles * Panels <= kRowTile);
    const size_t size = rows < kTileRows ? rows : kTileRows, step = tile_inputs(m);
    const size_t together = (Split ? 1 : Tiles) * size;  // rows of a block
    const int8_t* weights = m.packed + panel * kPanel * m.inputs;
    Block b = {weights, m.inputs, step, m.stride, size, {}, {}, 0, 0};
    for (size_t row = 0; row < rows; row += together) {
      for (size_t i = 0; i < Tiles; ++i) {
        const size_t wanted = Split ? row : row + i * size;
        const size_t first = wanted + size <= rows ? wanted : rows - size;
        b.x[i] = x + (Split && i == 1 ? rows + first : first) * m.inputs;
        b.out[i] = out + first * m.stride + panel * kPanel;
      }
      // Each block fetches its share, so that memory works all the time.
      const size_t next = row + together < rows ? row + together : rows;
      b.fetch_begin = b.fetch_end;
      if (m.from_memory) b.fetch_end = kPanel * step * next / rows / kLine * kLine;
      multiply_block<Unsigned, Split, Tiles>(b, std::make_integer_sequence<int, Panels>());
    }
  }

  template <bool Unsigned, bool Split, int Tiles>
  static void multiply_all(const MatrixView& m, const int8_t* x, size_t rows, int32_t* out) {
    const size_t panels = m.outputs / kPanel;
    size_t panel = 0;
    if constexpr (Tiles == 1) {
      for (; panels - panel >= 4; panel += 4)
        multiply_panels<Unsigned, Split, Tiles, 4>(m, panel, x, rows, out);
    }
    for (; panels - panel >= 2; panel += 2)
      multiply_panels<Unsigned, Split, Tiles, 2>(m, panel, x, rows, out);
    if (panel < panels) multiply_panels<Unsigned, Split, Tiles, 1>(m, panel, x, rows, out);
  }

  static void multiply(const MatrixView& m, const void* x, size_t rows, int32_t* out,
                       uint8_t* scratch) {
    if (rows == 0) return;
    T::configure(rows < kTileRows ? rows : kTileRows, tile_inputs(m));
    const auto* bytes = static_cast<const int8_t*>(x);
    if (m.input == Input::kInt14) {
      auto* halves = reinterpret_cast<int8_t*>(scratch);
      split(static_cast<const int16_t*>(x), rows * m.inputs, halves);
      multiply_all<false, true, 2>(m, halves, rows, out);
    } else if (m.input == Input::kInt8) {
      if (rows > kTileRows) {
        multiply_all<false, false, 2>(m, bytes, rows, out);
      } else {
        multiply_all<false, false, 1>(m, bytes, rows, out);
      }
    } else if (rows > kTileRows) {
      multiply_all<true, false, 2>(m, bytes, rows, out);
    } else {
      multiply_all<true, false, 1>(m, bytes, rows, out);
    }
    T::release();
  }
};

}  // namespace lmzip

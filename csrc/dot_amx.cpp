// dot_amx.cpp: dot.h for AMX.
#include <cstdint>

#include "dot_amx_impl.h"

namespace lmzip {
namespace {

// Instructions, not intrinsics: those of GCC take numbers of registers as written digits only.
// Memory is clobbered by all that reads or writes it.
struct Tiles {
  // Palette 1: eight tiles, of these all alike but for the panels, 4 inputs a row.
  static void configure(size_t rows, size_t inputs) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    static_assert(sizeof config == 64);
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? inputs : 64);
      config.rows[i] = static_cast<uint8_t>(i < 6 ? rows : inputs / 4);
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  static void release() { asm volatile("tilerelease"); }

  template <int Tile>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
  }
  template <int Tile>
  static void load(const void* p, size_t stride) {
    asm volatile("tileloadd (%0,%1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(Tile) : "memory");
  }
  template <int Tile>
  static void store(void* p, size_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1)" ::"r"(p), "r"(stride), "i"(Tile) : "memory");
  }
  template <bool Unsigned, int Sums, int Rows, int Panel>
  static void add_products() {
    if constexpr (Unsigned) {
      asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(Rows), "i"(Panel));
    } else {
      asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(Rows), "i"(Panel));
    }
  }
};

constexpr size_t kFewRows = 3;

// Of few rows a tile is mostly empty.
void multiply(const MatrixView& m, const void* x, size_t rows, int32_t* out, uint8_t* scratch) {
  const auto run = rows <= kFewRows ? kDotVnni.multiply : AmxDot<Tiles>::multiply;
  run(m, x, rows, out, scratch);
}

void pack(const int8_t* rows, size_t outputs, size_t inputs, Input input, int8_t* packed) {
  kDotVnni.pack(rows, outputs, inputs, input, packed);
}

}  // namespace

const DotKernel kDotAmx = {pack, multiply};

}  // namespace lmzip

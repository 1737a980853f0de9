// engine_check.cpp: replays tests/vectors/engine.txt with every kernel of this machine, stepwise
// and in runs, and codes frames under the sanitizers; makes products by parts.
//
//   engine_check [FILE]    without FILE: the vectors of the source tree
#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>

#include "check.h"
#include "dot_amx_impl.h"
#include "engine.h"
#include "errors.h"
#include "frame_codec.h"
#include "random_model.h"

namespace lmzip {
namespace {

using test::place_hash;
using test::Random;

uint32_t crc32(uint32_t crc, const uint8_t* bytes, size_t size) {
  crc = ~crc;
  for (size_t i = 0; i < size; ++i) {
    crc ^= bytes[i];
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
  }
  return ~crc;
}

// A line of the file.
struct Case {
  Architecture architecture;
  uint64_t seed;
  size_t lanes, positions;
  uint32_t logits, state, payloads;

  std::vector<uint8_t> raw() const {
    std::vector<uint8_t> bytes(lanes * positions - 1);
    for (size_t i = 0; i < bytes.size(); ++i)
      bytes[i] = static_cast<uint8_t>(97 + place_hash(seed, 1000, i) % 8);
    return bytes;
  }
};

Case parse(const std::string& line) {
  std::istringstream in(line);
  Case c;
  Architecture& a = c.architecture;
  std::string windows, ngrams, item;
  in >> a.d_model >> a.n_layers >> a.n_heads >> a.n_kv_heads >> a.head_dim >> a.d_ff;
  in >> windows >> ngrams >> c.seed >> c.lanes >> c.positions;
  in >> std::hex >> c.logits >> c.state >> c.payloads;
  CHECK(!in.fail());
  std::istringstream window_list(windows), ngram_list(ngrams == "-" ? "" : ngrams);
  while (std::getline(window_list, item, ',')) a.windows.push_back(std::stoul(item));
  while (std::getline(ngram_list, item, ',')) {
    std::replace(item.begin(), item.end(), ':', ' ');
    std::istringstream fields(item);
    NgramTable t{};
    fields >> t.order >> t.log2_slots >> t.offset >> t.width;
    CHECK(!fields.fail());
    a.ngrams.push_back(t);
  }
  return c;
}

// The rows of a frame, lane by lane.  The last lane is one byte shorter and gets a zero for it.
std::vector<Row> all_rows(const Case& c) {
  std::vector<uint8_t> raw = c.raw();
  raw.push_back(0);
  std::vector<Row> rows;
  for (uint32_t lane = 0; lane < c.lanes; ++lane) {
    uint32_t history = 0;
    for (uint32_t t = 0; t < c.positions; ++t) {
      rows.push_back({lane, t, history});
      history = push_input(history, raw[lane * c.positions + t]);
    }
  }
  return rows;
}

uint32_t logits_crc(const Case& c, const std::vector<int32_t>& logits) {
  std::vector<uint8_t> bytes;
  for (size_t i = 0; i < (c.lanes * c.positions - 1) * kLogits; ++i) {
    for (int j = 0; j < 4; ++j)
      bytes.push_back(static_cast<uint8_t>(static_cast<uint32_t>(logits[i]) >> (8 * j)));
  }
  return crc32(0, bytes.data(), bytes.size());
}

uint32_t state_crc(const Case& c, Cache& cache) {
  const Architecture& a = c.architecture;
  std::vector<uint8_t> bytes;
  for (size_t layer = 0; layer < a.n_layers; ++layer) {
    const size_t window = a.windows[layer];
    for (const bool keys : {true, false}) {
      for (size_t lane = 0; lane < std::max<size_t>(c.lanes - 1, 1); ++lane) {
        for (size_t t = c.positions - std::min(c.positions, window); t < c.positions; ++t) {
          for (size_t i = 0; i < a.n_kv_heads * a.head_dim; ++i) {
            const size_t head = i / a.head_dim, channel = i % a.head_dim;
            bytes.push_back(
                static_cast<uint8_t>(keys ? cache.key(lane, layer, head, t % window, channel)
                                          : cache.value(lane, layer, head, t % window, channel)));
          }
        }
      }
    }
  }
  return crc32(0, bytes.data(), bytes.size());
}

// All rows in runs of `run` positions, each lane for itself.
void check_prefill(const Case& c, const ExactModel& model, size_t run) {
  const std::vector<Row> rows = all_rows(c);
  std::vector<int32_t> logits(rows.size() * kLogits);
  Cache cache(model, c.lanes);
  Workspace workspace(model, run);
  for (size_t i = 0; i < rows.size();) {
    const size_t size = std::min(run, (rows[i].lane + size_t{1}) * c.positions - i);
    forward(model, {&rows[i], size}, cache, workspace, &logits[i * kLogits]);
    i += size;
  }
  CHECK(logits_crc(c, logits) == c.logits);
  CHECK(state_crc(c, cache) == c.state);
}

// Position by position, `batch` lanes at once.
void check_steps(const Case& c, const ExactModel& model, size_t batch) {
  const std::vector<Row> rows = all_rows(c);
  std::vector<int32_t> logits(rows.size() * kLogits);
  std::vector<int32_t> step(batch * kLogits);
  Cache cache(model, c.lanes);
  Workspace workspace(model, batch);
  for (size_t t = 0; t < c.positions; ++t) {
    for (size_t lane = 0; lane < c.lanes; lane += batch) {
      std::vector<Row> now;
      for (size_t i = lane; i < std::min(lane + batch, c.lanes); ++i)
        now.push_back(rows[i * c.positions + t]);
      forward(model, now, cache, workspace, step.data());
      for (size_t i = 0; i < now.size(); ++i) {
        std::copy_n(&step[i * kLogits], kLogits, &logits[((lane + i) * c.positions + t) * kLogits]);
      }
    }
  }
  CHECK(logits_crc(c, logits) == c.logits);
  CHECK(state_crc(c, cache) == c.state);
}

std::vector<std::span<const uint8_t>> views(const Payloads& payloads) {
  return {payloads.begin(), payloads.end()};
}

void check_frames(const Case& c, const ExactModel& model) {
  const std::vector<uint8_t> raw = c.raw();
  for (const Method method : {Method::kNetwork, Method::kNetworkMixer}) {
    Payloads first;
    for (size_t threads = 1; threads <= 3; ++threads) {
      const FrameParams params = {method, &model, 16, MixerProfile::kText, threads};
      const Payloads payloads = encode_frame(params, raw, c.lanes);
      uint32_t crc = 0;
      for (const auto& payload : payloads) crc = crc32(crc, payload.data(), payload.size());
      CHECK(method != Method::kNetwork || crc == c.payloads);
      if (threads == 1) first = payloads;
      CHECK(payloads == first);
      std::vector<uint8_t> back(raw.size());
      decode_frame(params, views(payloads), back);
      CHECK(back == raw);
    }
  }
}

// The network in stages, each of its own thread, of which some have a layer more than others; the
// last steps leave groups without a lane, or there are none from the start.
void check_stages(Random& rng) {
  const Architecture architecture = {
      64, 5, 4, 2, 16, 64, {8, 3, 16, 5, 12}, {{2, 8, 0, 32}, {3, 9, 32, 32}}};
  const ExactModel model = test::RandomModel(architecture, 5).model();
  struct Size {
    size_t lanes, raw;
  };
  for (const Size size : {Size{24, 24 * 20 + 3}, Size{24, 9}, Size{24, 3}, Size{4, 120}, Size{3, 7},
                          Size{2, 51}, Size{1, 40}}) {
    std::vector<uint8_t> raw(size.raw);
    for (uint8_t& byte : raw) byte = static_cast<uint8_t>(97 + rng.below(5));
    for (const Method method : {Method::kNetwork, Method::kNetworkMixer}) {
      FrameParams params = {method, &model, 16, MixerProfile::kText, 1, 0};
      const Payloads payloads = encode_frame(params, raw, size.lanes);
      for (params.threads = 1; params.threads <= 7; ++params.threads) {
        for (params.stages = 0; params.stages <= params.threads; ++params.stages) {
          std::vector<uint8_t> back(raw.size());
          decode_frame(params, views(payloads), back);
          CHECK(back == raw);
          if (size.raw < 100) continue;
          Payloads damaged = payloads;
          damaged[rng.below(size.lanes)].resize(3);
          bool refused = false;
          try {
            decode_frame(params, views(damaged), back);
          } catch (const CorruptError&) {
            refused = true;
          }
          CHECK(refused);
        }
      }
    }
  }
}

// Payloads of any bytes: each is decoded to what it encodes, or refused.
void check_garbage(const Case& c, const ExactModel& model) {
  Random random(c.seed);
  for (int round = 0; round < 40; ++round) {
    Payloads payloads(c.lanes);
    for (auto& payload : payloads) {
      payload.resize(random.below(12));
      for (uint8_t& byte : payload) byte = static_cast<uint8_t>(random.next());
    }
    std::vector<uint8_t> raw(random.below(4 * c.lanes) + 1);
    const auto method = round % 2 == 0 ? Method::kNetwork : Method::kNetworkMixer;
    const FrameParams params = {method, &model, 16, MixerProfile::kText, 2};
    try {
      decode_frame(params, views(payloads), raw);
    } catch (const CorruptError&) {
      continue;
    }
    CHECK(encode_frame(params, raw, c.lanes) == payloads);
  }
}

void check_case(const Case& c) {
  const test::RandomModel tensors(c.architecture, c.seed);
  for (const Kernel kernel : usable_kernels()) {
    set_active_kernel(kernel_name(kernel));
    const ExactModel model = tensors.model();
    const FloatMode mode;
    for (const size_t run : {size_t{1}, size_t{3}, kTileRows}) check_prefill(c, model, run);
    for (const size_t batch : {size_t{1}, size_t{5}, kTileRows}) check_steps(c, model, batch);
    check_frames(c, model);
    check_garbage(c, model);
    std::printf("  %s: equal\n", std::string(kernel_name(kernel)).c_str());
  }
}

// The tiles of AMX as arrays, by the manual's words: what is beyond the rows and bytes of a tile is
// neither read nor written.
struct SoftwareTiles {
  static inline struct {
    int8_t bytes[16][64];
  } tiles[8];
  static inline size_t rows_, inputs_;
  static inline bool ready = false;

  static void configure(size_t rows, size_t inputs) {
    CHECK(!ready && rows >= 1 && rows <= 16 && inputs >= 4 && inputs <= 64 && inputs % 4 == 0);
    ready = true, rows_ = rows, inputs_ = inputs;
    std::memset(tiles, 0x55, sizeof tiles);  // zero in truth; nobody should rest on that
  }
  static void release() {
    CHECK(ready);
    ready = false;
  }
  static size_t rows_of(int tile) { return tile < 6 ? rows_ : inputs_ / 4; }
  static size_t bytes_of(int tile) { return tile == 4 || tile == 5 ? inputs_ : 64; }

  template <int Tile>
  static void zero() {
    CHECK(ready);
    std::memset(&tiles[Tile], 0, sizeof tiles[Tile]);
  }
  template <int Tile>
  static void load(const void* p, size_t stride) {
    CHECK(ready);
    for (size_t i = 0; i < rows_of(Tile); ++i)
      std::memcpy(tiles[Tile].bytes[i], static_cast<const int8_t*>(p) + i * stride, bytes_of(Tile));
  }
  template <int Tile>
  static void store(void* p, size_t stride) {
    CHECK(ready);
    for (size_t i = 0; i < rows_of(Tile); ++i)
      std::memcpy(static_cast<int8_t*>(p) + i * stride, tiles[Tile].bytes[i], bytes_of(Tile));
  }
  template <bool Unsigned, int Sums, int Rows, int Panel>
  static void add_products() {
    CHECK(ready);
    for (size_t r = 0; r < rows_; ++r) {
      for (size_t i = 0; i < 16; ++i) {
        int32_t sum;
        std::memcpy(&sum, tiles[Sums].bytes[r] + 4 * i, 4);
        for (size_t k = 0; k < inputs_; ++k) {
          const int8_t x = tiles[Rows].bytes[r][k], w = tiles[Panel].bytes[k / 4][4 * i + k % 4];
          sum += (Unsigned ? static_cast<uint8_t>(x) : x) * w;
        }
        std::memcpy(tiles[Sums].bytes[r] + 4 * i, &sum, 4);
      }
    }
  }
};

void pack_panels(const int8_t* rows, size_t outputs, size_t inputs, Input, int8_t* packed) {
  for (size_t i = 0; i < outputs; ++i) {
    for (size_t k = 0; k < inputs; ++k)
      packed[i / 16 * 16 * inputs + k / 4 * 64 + i % 16 * 4 + k % 4] = rows[i * inputs + k];
  }
}

const DotKernel kDotSoftwareTiles = {pack_panels, AmxDot<SoftwareTiles>::multiply};

// Products by parts of a matrix, as teams make them, side by side in rows of the whole.
template <typename X>
void check_parts(const DotKernel& dot, Input input, int low, int high, size_t inputs,
                 bool from_memory, Random& rng) {
  constexpr size_t kOutputs = 240, kRows = 71;
  constexpr size_t kCuts[] = {0, 32, 144, kOutputs};
  std::vector<int8_t> weights(kOutputs * inputs);
  for (int8_t& w : weights) w = static_cast<int8_t>(static_cast<int>(rng.below(255)) - 127);
  AlignedArray<X> x(kRows * inputs);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = static_cast<X>(low + static_cast<int>(rng.below(static_cast<uint64_t>(high - low + 1))));
  AlignedArray<int8_t> packed(weights.size());
  dot.pack(weights.data(), kOutputs, inputs, input, packed.data());
  Matrix matrix{input,      kOutputs, inputs, packed.data(), AlignedArray<int32_t>(kOutputs),
                from_memory};
  for (size_t i = 0; i < weights.size(); ++i) matrix.row_sums[i / inputs] += weights[i];
  AlignedArray<uint8_t> scratch(scratch_bytes(kRows, inputs));
  for (const size_t rows :
       {size_t{1}, size_t{4}, size_t{7}, size_t{16}, size_t{18}, size_t{33}, kRows}) {
    std::vector<int32_t> expected(rows * kOutputs);
    for (size_t i = 0; i < expected.size(); ++i) {
      for (size_t c = 0; c < inputs; ++c)
        expected[i] += weights[i % kOutputs * inputs + c] * x[i / kOutputs * inputs + c];
    }
    for (size_t i = 0; i + 1 < std::size(kCuts); ++i) {  // others' sums stay as they are
      std::vector<int32_t> out(rows * kOutputs, -1);
      dot.multiply(matrix.part(kCuts[i], kCuts[i + 1]), x.data(), rows, out.data() + kCuts[i],
                   scratch.data());
      for (size_t j = 0; j < out.size(); ++j) {
        const size_t output = j % kOutputs;
        CHECK(out[j] == (kCuts[i] <= output && output < kCuts[i + 1] ? expected[j] : -1));
      }
    }
  }
}

// The greatest sums of 14 bits: the high parts' alone, times 128, have 33.
void check_extreme(const DotKernel& dot) {
  constexpr size_t kInputs = 8192;
  constexpr int16_t kMost = 0x7FFFFFFF / (127 * kInputs);
  const std::vector<int8_t> weights(16 * kInputs, 127);
  AlignedArray<int8_t> packed(weights.size());
  dot.pack(weights.data(), 16, kInputs, Input::kInt14, packed.data());
  const std::vector<int32_t> row_sums(16, 127 * kInputs);
  AlignedArray<uint8_t> scratch(scratch_bytes(4, kInputs));
  for (const int16_t value : {kMost, static_cast<int16_t>(-kMost)}) {
    const std::vector<int16_t> x(4 * kInputs, value);
    const MatrixView view = {Input::kInt14, 16, 16, kInputs, packed.data(), row_sums.data(), false};
    std::vector<int32_t> out(4 * 16);
    dot.multiply(view, x.data(), 4, out.data(), scratch.data());
    for (const int32_t sum : out) CHECK(sum == int32_t{127} * int32_t{kInputs} * value);
  }
}

void check_products(const DotKernel& dot, Random& rng) {
  check_extreme(dot);
  for (const size_t inputs : {size_t{96}, size_t{128}}) {
    for (const bool from_memory : {false, true}) {
      check_parts<int8_t>(dot, Input::kInt8, -127, 127, inputs, from_memory, rng);
      check_parts<uint8_t>(dot, Input::kUint8, 0, 255, inputs, from_memory, rng);
      check_parts<int16_t>(dot, Input::kInt14, -8191, 8191, inputs, from_memory, rng);
    }
  }
}

int run(const char* path) {
  Random rng(1);
  for (const Kernel kernel : usable_kernels()) check_products(dot_kernel(kernel), rng);
  check_products(kDotSoftwareTiles, rng);
  check_stages(rng);
  std::ifstream file(path);
  CHECK(file.is_open());
  int cases = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::printf("%s\n", line.c_str());
    check_case(parse(line));
    ++cases;
  }
  CHECK(cases > 0);
  return 0;
}

}  // namespace
}  // namespace lmzip

int main(int argc, char** argv) { return lmzip::run(argc > 1 ? argv[1] : LMZIP_ENGINE_VECTORS); }

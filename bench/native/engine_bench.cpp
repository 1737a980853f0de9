// engine_bench.cpp: where the time of the exact engine goes, on one core, in CPU time.
//
//   make engine-bench
//   build/engine_bench [small|default] [ROWS...]
//
// Models have random weights in the shapes of the bundled
// ones.  All is measured in the same run, the rounds interleaved, medians taken:
//   limit     int8 multiply-adds of this core without any memory access, 2 operations each
//   products  the products of one step alone, one after the other, as the engine calls them
//   stages    everything else, each stage alone, on numbers that a real run has left behind
//   step      forward() for ROWS lanes, one position each, all windows full
//   prefill   forward() for one lane, as many positions at a time as the engine takes
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include "engine.h"
#include "random_model.h"

using namespace lmzip;

namespace {

double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Seconds of one call: repeated until it takes a few milliseconds.
double time_once(const std::function<void()>& work) {
  for (int repeats = 1;; repeats *= 2) {
    const double start = cpu_seconds();
    for (int i = 0; i < repeats; ++i) work();
    const double seconds = cpu_seconds() - start;
    if (seconds > 4e-3) return seconds / repeats;
  }
}

struct Item {
  std::string name;
  std::function<void()> work;
  double operations;  // of int8 products, in one call; 0: none
  std::vector<double> seconds;

  double median() {
    std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
    return seconds[seconds.size() / 2];
  }
};

#if defined(__x86_64__)
// Ten independent chains of vpdpbusd, more than latency times units of any core so far.
__attribute__((target("avx512f,avx512vnni"))) void limit_vnni(int rounds) {
  for (int i = 0; i < rounds; ++i) {
    asm volatile(
        "vpdpbusd %%zmm0, %%zmm1, %%zmm2\n vpdpbusd %%zmm0, %%zmm1, %%zmm3\n"
        "vpdpbusd %%zmm0, %%zmm1, %%zmm4\n vpdpbusd %%zmm0, %%zmm1, %%zmm5\n"
        "vpdpbusd %%zmm0, %%zmm1, %%zmm6\n vpdpbusd %%zmm0, %%zmm1, %%zmm7\n"
        "vpdpbusd %%zmm0, %%zmm1, %%zmm8\n vpdpbusd %%zmm0, %%zmm1, %%zmm9\n"
        "vpdpbusd %%zmm0, %%zmm1, %%zmm10\n vpdpbusd %%zmm0, %%zmm1, %%zmm11\n" ::
            : "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11");
  }
}
// Four independent sums of whole tiles, which are zero.
void limit_amx(int rounds) {
  struct alignas(64) {
    uint8_t palette = 1, zero[15] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
  } config;
  asm volatile("ldtilecfg %0" ::"m"(config));
  for (int i = 0; i < rounds; ++i) {
    asm volatile(
        "tdpbssd %tmm5, %tmm4, %tmm0\n tdpbssd %tmm5, %tmm4, %tmm1\n"
        "tdpbssd %tmm5, %tmm4, %tmm2\n tdpbssd %tmm5, %tmm4, %tmm3\n");
  }
  asm volatile("tilerelease");
}
__attribute__((target("avx2"))) void limit_avx_vnni(int rounds) {
  for (int i = 0; i < rounds; ++i) {
    asm volatile(
        "%{vex%} vpdpbusd %%ymm0, %%ymm1, %%ymm2\n %{vex%} vpdpbusd %%ymm0, %%ymm1, %%ymm3\n"
        "%{vex%} vpdpbusd %%ymm0, %%ymm1, %%ymm4\n %{vex%} vpdpbusd %%ymm0, %%ymm1, %%ymm5\n"
        "%{vex%} vpdpbusd %%ymm0, %%ymm1, %%ymm6\n %{vex%} vpdpbusd %%ymm0, %%ymm1, %%ymm7\n"
        "%{vex%} vpdpbusd %%ymm0, %%ymm1, %%ymm8\n %{vex%} vpdpbusd %%ymm0, %%ymm1, %%ymm9\n"
        "%{vex%} vpdpbusd %%ymm0, %%ymm1, %%ymm10\n %{vex%} vpdpbusd %%ymm0, %%ymm1, %%ymm11\n" ::
            : "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11");
  }
}
// The AVX2 form of an exact int8 product: vpsignb, vpmaddubsw, vpmaddwd, vpaddd.
__attribute__((target("avx2"))) void limit_avx2(int rounds) {
#define LMZIP_CHAIN(s, t)                                                       \
  "vpsignb %%ymm0, %%ymm1, %%ymm" t "\n vpmaddubsw %%ymm" t ", %%ymm0, %%ymm" t \
  "\n"                                                                          \
  "vpmaddwd %%ymm" t ", %%ymm0, %%ymm" t "\n vpaddd %%ymm" t ", %%ymm" s ", %%ymm" s "\n"
  for (int i = 0; i < rounds; ++i) {
    asm volatile(LMZIP_CHAIN("2", "8") LMZIP_CHAIN("3", "9") LMZIP_CHAIN("4", "10")
                     LMZIP_CHAIN("5", "11")::
                         : "xmm2", "xmm3", "xmm4", "xmm5", "xmm8", "xmm9", "xmm10", "xmm11");
  }
#undef LMZIP_CHAIN
}
#endif

Item limit_item(Kernel kernel) {
  constexpr int kRounds = 1000;
#if defined(__x86_64__)
  if (kernel == Kernel::kAmx)
    return {"limit", [] { limit_amx(kRounds); }, kRounds * 4 * 32768.0, {}};
  if (kernel == Kernel::kVnni)
    return {"limit", [] { limit_vnni(kRounds); }, kRounds * 10 * 128.0, {}};
  if (kernel == Kernel::kAvxVnni)
    return {"limit", [] { limit_avx_vnni(kRounds); }, kRounds * 10 * 64.0, {}};
  if (kernel >= Kernel::kAvx2)
    return {"limit", [] { limit_avx2(kRounds); }, kRounds * 4 * 64.0, {}};
#endif
  return {"limit (none measured for this kernel)", [] {}, 0, {}};
}

Architecture architecture(const std::string& name) {
  std::vector<NgramTable> ngrams = {{2, 14, 0, 64}, {3, 16, 64, 64}, {4, 16, 0, 64}};
  if (name == "small") return {128, 4, 4, 2, 32, 512, {32, 64, 128, 256}, ngrams};
  if (name == "default") return {256, 4, 4, 2, 32, 1024, {32, 64, 128, 256}, ngrams};
  std::fprintf(stderr, "%s: no such size; small or default\n", name.c_str());
  std::exit(2);
}

class Bench {
 public:
  Bench(const std::string& size, size_t rows)
      : size_(size),
        model_(test::RandomModel(architecture(size), 7).model()),
        rows_(rows),
        cache_(model_, rows),
        workspace_(model_, std::min(rows, kTileRows)),
        logits_(kTileRows * kLogits) {
    for (size_t t = 0; t < 300; ++t) step();
  }

  void run() {
    items_.push_back(limit_item(model_.kernel()));
    add_products();
    add_stages();
    items_.push_back({"step", [this] { step(); }, products(), {}});
    items_.push_back({"prefill",
                      [this] { prefill(); },
                      products() * static_cast<double>(kTileRows) / rows_,
                      {}});
    for (int round = 0; round < 15; ++round) {
      for (Item& item : items_) item.seconds.push_back(time_once(item.work));
    }
    print();
  }

 private:
  // int8 operations of a row; 14-bit inputs are two products.
  static double operations(const Product& p) {
    const double passes = p.weight.input == Input::kInt14 ? 2 : 1;
    return passes * 2 * static_cast<double>(p.weight.outputs * p.weight.inputs);
  }

  // Of the products of one step.
  double products() const {
    double sum = operations(model_.head());
    for (const Layer& layer : model_.layers())
      for (const Product* p : {&layer.qkv, &layer.out, &layer.up, &layer.down})
        sum += operations(*p);
    return sum * static_cast<double>(rows_);
  }

  void step() {
    for (size_t first = 0; first < rows_; first += kTileRows) {
      std::vector<Row> rows;
      for (size_t lane = first; lane < std::min(rows_, first + kTileRows); ++lane) {
        rows.push_back({static_cast<uint32_t>(lane), position_,
                        static_cast<uint32_t>(test::place_hash(1, lane, position_))});
      }
      forward(model_, rows, cache_, workspace_, logits_.data());
    }
    ++position_;
  }

  void prefill() {
    if (prefill_cache_ == nullptr) prefill_cache_ = std::make_unique<Cache>(model_, 1);
    if (prefill_workspace_ == nullptr)
      prefill_workspace_ = std::make_unique<Workspace>(model_, kTileRows);
    std::vector<Row> rows;
    for (size_t i = 0; i < kTileRows; ++i) {
      rows.push_back(
          {0, prefill_position_, static_cast<uint32_t>(test::place_hash(1, 0, prefill_position_))});
      ++prefill_position_;
    }
    forward(model_, rows, *prefill_cache_, *prefill_workspace_, logits_.data());
  }

  void add_products() {
    const auto all = [this] {
      for (size_t first = 0; first < rows_; first += kTileRows) {
        const size_t count = std::min(kTileRows, rows_ - first);
        for (const Layer& layer : model_.layers())
          for (const Product* p : {&layer.qkv, &layer.out, &layer.up, &layer.down})
            multiply(*p, count);
        multiply(model_.head(), count);
      }
    };
    input_ = AlignedArray<uint8_t>(kTileRows * 65536);
    for (size_t i = 0; i < input_.size(); ++i)
      input_[i] = static_cast<uint8_t>(test::place_hash(3, 0, i) & 31);
    out_ = AlignedArray<int32_t>(kTileRows * 65536);
    scratch_ = AlignedArray<uint8_t>(scratch_bytes(kTileRows, 65536));
    items_.push_back({"products", all, products(), {}});
    const Layer& layer = model_.layers()[0];
    const std::pair<const char*, const Product*> each[] = {{"  qkv", &layer.qkv},
                                                           {"  out", &layer.out},
                                                           {"  up", &layer.up},
                                                           {"  down", &layer.down},
                                                           {"  head", &model_.head()}};
    for (const auto& [name, p] : each) {
      const size_t count = std::min(rows_, kTileRows);
      items_.push_back({name,
                        [this, p = p, count] { multiply(*p, count); },
                        operations(*p) * static_cast<double>(count),
                        {}});
    }
  }

  void multiply(const Product& p, size_t count) {
    model_.dot().multiply(p.weight.view(), input_.data(), count, out_.data(), scratch_.data());
  }

  // One row and one layer each; the last layer's attention has the widest window.
  void add_stages() {
    const StageKernels& s = model_.stages();
    const size_t d = model_.arch().d_model, f = model_.arch().d_ff;
    x_ = AlignedArray<int32_t>(f);
    acc_ = AlignedArray<int32_t>(std::max(f, size_t{4096}));
    for (size_t i = 0; i < acc_.size(); ++i)
      acc_[i] = static_cast<int32_t>(test::place_hash(4, 0, i) % 200000) - 100000;
    const auto stage = [&](const char* name, std::function<void()> work) {
      items_.push_back({name, std::move(work), 0, {}});
    };
    const Layer& layer = model_.layers()[0];
    stage("  quantize_row", [=, this, &s] { s.quantize_row(acc_.data(), d, bytes_); });
    stage("  rotate", [=, this, &s, &layer] {
      s.rotate(acc_.data(), layer.qkv.scale.data(), acc_.data(), acc_.data(), model_.half(), 32.0f,
               bytes_);
    });
    for (size_t i = 0; i < model_.arch().n_layers; ++i) {
      names_.push_back("  attend, window " + std::to_string(model_.layers()[i].window));
      stage(names_.back().c_str(), [=, this, &s] { attend(s, i); });
    }
    stage("  quantize_average", [=, this, &s] {
      s.quantize_average(acc_.data(), model_.layers()[0].out.weight.inputs, bytes_);
    });
    stage("  add_product", [=, this, &s, &layer] {
      s.add_product(acc_.data(), layer.out.scale.data(), 1.0f, d, x_.data());
    });
    stage("  activate", [=, this, &s, &layer] {
      std::copy_n(acc_.data(), f, x_.data());
      s.activate(x_.data(), layer.up.scale.data(), f, reinterpret_cast<uint8_t*>(bytes_));
    });
    stage("  make_logits", [=, this, &s] {
      s.make_logits(acc_.data(), model_.head().scale.data(), 0.01f, kLogits, logits_.data());
    });
  }

  void attend(const StageKernels& s, size_t i) {
    const Architecture& a = model_.arch();
    const Layer& layer = model_.layers()[i];
    const size_t group = a.n_heads / a.n_kv_heads;
    if (scores_.size() == 0) scores_ = AlignedArray<int32_t>(attention_scratch(65536));
    for (size_t g = 0; g < a.n_kv_heads; ++g) {
      const AttentionView view = {group,
                                  model_.head_size(),
                                  model_.value_size(),
                                  layer.window,
                                  cache_.keys(next_lane_, i, g),
                                  cache_.values(next_lane_, i, g),
                                  layer.softmax.data() + g * group};
      s.attend(view, query_, scores_.data(), x_.data());
    }
    next_lane_ = (next_lane_ + 1) % rows_;
  }

  void print() {
    const double limit = items_[0].operations / items_[0].median();
    std::printf("%s, %zu rows, kernel %s: limit %.0f G int8 operations/s\n", size_.c_str(), rows_,
                std::string(kernel_name(model_.kernel())).c_str(), limit / 1e9);
    std::printf("%-24s %10s %10s %8s\n", "", "us a call", "us a byte", "of limit");
    for (size_t i = 1; i < items_.size(); ++i) {
      Item& item = items_[i];
      const double us = item.median() * 1e6;
      std::printf("%-24s %10.3f", item.name.c_str(), us);
      if (item.operations > 0) {
        const double bytes =
            item.name == "prefill" ? static_cast<double>(kTileRows) : static_cast<double>(rows_);
        if (item.name[0] != ' ') {
          std::printf(" %10.3f", us / bytes);
        } else {
          std::printf(" %10s", "");
        }
        std::printf(" %7.1f%%", 100 * item.operations / item.median() / limit);
      }
      std::printf("\n");
    }
  }

  std::string size_;
  ExactModel model_;
  size_t rows_;
  Cache cache_;
  Workspace workspace_;
  AlignedArray<int32_t> logits_;
  uint32_t position_ = 0, prefill_position_ = 0;
  size_t next_lane_ = 0;
  std::unique_ptr<Cache> prefill_cache_;
  std::unique_ptr<Workspace> prefill_workspace_;
  std::vector<Item> items_;
  std::vector<std::string> names_;
  AlignedArray<uint8_t> input_, scratch_;
  AlignedArray<int32_t> out_, x_, acc_, scores_;
  int8_t bytes_[65536] = {};
  int8_t query_[128 * 128] = {1, 2, 3, -4, 50, -6, 7, 8, 9, 10, -11, 12, 13, 14, 15, 16};
};

}  // namespace

int main(int argc, char** argv) {
  const std::string size = argc > 1 ? argv[1] : "default";
  std::vector<size_t> rows;
  for (int i = 2; i < argc; ++i) rows.push_back(std::strtoul(argv[i], nullptr, 10));
  if (rows.empty()) rows = {1, 8, 16, 32};
  for (const size_t count : rows) Bench(size, count).run();
}

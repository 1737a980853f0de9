// mixer_bench.cpp: compresses files with the mixer, decodes them again, compares, and prints bytes
// and user CPU time.  No container: the sum of the lanes' payloads.
//
//   g++ -std=c++20 -O3 -DNDEBUG -ffp-contract=off -I csrc -o build/mixer_bench
//     bench/native/mixer_bench.cpp csrc/mixer*.cpp csrc/bit_history.cpp csrc/cpu.cpp
//   build/mixer_bench [-p text|binary|strong|sample|code] [-l LANES] [-m LOG2_MEMORY] [-e] [-w]
//   FILE...
//
// -e: encode only, for ablations, whose bytes are all that matters.
// -w: FILE.w holds a row of 256 weights (uint32, this machine's byte order) for each byte of FILE,
// the prediction of a network.  With -DLMZIP_MIXER_ABLATION the environment variable LMZIP_DROP
// leaves parts of the mixer out, for example LMZIP_DROP=order0,set-classes: see mixer_ablation.h.
#include <sys/resource.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "mixer.h"

using namespace lmzip;

namespace {

double user_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec) +
         1e-6 * static_cast<double>(usage.ru_utime.tv_usec);
}

std::vector<uint8_t> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    std::fprintf(stderr, "%s: cannot be read\n", path.c_str());
    std::exit(2);
  }
  std::vector<uint8_t> bytes(std::filesystem::file_size(path));
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  return bytes;
}

struct Totals {
  size_t raw = 0, coded = 0;
  double encoding = 0, decoding = 0;
};

void measure(const std::string& path, int lanes, MixerParams params, bool decode, Totals& totals) {
  const std::vector<uint8_t> raw = read_file(path);
  std::vector<uint32_t> weights;
  if (params.with_network) {
    const std::vector<uint8_t> bytes = read_file(path + ".w");
    const auto* rows = reinterpret_cast<const uint32_t*>(bytes.data());
    weights.assign(rows, rows + bytes.size() / 4);
    if (weights.size() != raw.size() * 256) std::exit(2);
  }
  const uint32_t* rows = weights.empty() ? nullptr : weights.data();
  const double start = user_seconds();
  const auto payloads = encode_frame_mixer(raw, lanes, params, rows);
  const double middle = user_seconds();
  std::vector<uint8_t> again(raw.size());
  const std::vector<std::span<const uint8_t>> spans(payloads.begin(), payloads.end());
  const bool exact = !decode || decode_frame_mixer(spans, params, again, rows);
  const double end = user_seconds();
  if (!exact || (decode && again != raw)) {
    std::fprintf(stderr, "%s: decoded differently\n", path.c_str());
    std::exit(1);
  }
  size_t coded = 0;
  for (const auto& payload : payloads) coded += payload.size();
  const auto n = static_cast<double>(raw.size());
  std::printf("%-32s %9zu %9zu  %.4f bpc  encode %.3f  decode %.3f us a byte\n",
              path.substr(path.rfind('/') + 1).c_str(), raw.size(), coded,
              8 * static_cast<double>(coded) / n, 1e6 * (middle - start) / n,
              1e6 * (end - middle) / n);
  totals.raw += raw.size();
  totals.coded += coded;
  totals.encoding += middle - start;
  totals.decoding += end - middle;
}

}  // namespace

int main(int argc, char** argv) {
  MixerParams params;
  int lanes = 1;
  bool decode = true;
  Totals totals;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "-w") {
      params.with_network = true;
    } else if (word == "-e") {
      decode = false;
    } else if (word == "-l" && i + 1 < argc) {
      lanes = std::atoi(argv[++i]);
    } else if (word == "-m" && i + 1 < argc) {
      params.log2_memory = std::atoi(argv[++i]);
    } else if (word == "-p" && i + 1 < argc) {
      const std::string name = argv[++i];
      params.profile = name == "strong"   ? MixerProfile::kStrong
                       : name == "binary" ? MixerProfile::kBinary
                       : name == "sample" ? MixerProfile::kSample
                       : name == "code"   ? MixerProfile::kCode
                                          : MixerProfile::kText;
    } else {
      measure(word, lanes, params, decode, totals);
    }
  }
  if (totals.raw == 0) return 0;
  const auto n = static_cast<double>(totals.raw);
  std::printf("%-32s %9zu %9zu  %.4f bpc  encode %.3f  decode %.3f us a byte\n", "all", totals.raw,
              totals.coded, 8 * static_cast<double>(totals.coded) / n, 1e6 * totals.encoding / n,
              1e6 * totals.decoding / n);
}

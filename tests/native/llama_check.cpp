// llama_check.cpp: the sums of integers in llama_stages.h, with every kernel of this machine.  Of
// a wrong one the engine's logits may show nothing, for they are rounded more than once behind it.
#include <algorithm>
#include <cstdlib>
#include <vector>

#include "check.h"
#include "llama_stages.h"

namespace lmzip {
namespace {

using test::Random;

void check_sums(const LlamaStages& stages, const std::vector<int32_t>& x, int shift) {
  int32_t peak = 0;
  int64_t sum = 0;
  for (const int32_t v : x) {
    peak = std::max(peak, std::abs(v));
    sum += int64_t{v >> shift} * (v >> shift);
  }
  CHECK(stages.peak(x.data(), x.size()) == peak);
  CHECK(stages.squares(x.data(), shift, x.size()) == sum);
}

// Shifts are those that docs/numerics-llama.md has for rows of such numbers.
void check_sums(const LlamaStages& stages) {
  Random random(1);
  for (const size_t n : {size_t{16}, size_t{96}, size_t{8192}}) {
    for (int bits = 1; bits <= 30; ++bits) {
      const int32_t most = std::min((1 << bits) - 1, kLlamaResidualMax);
      std::vector<int32_t> x(n);
      for (int32_t& v : x)
        v = static_cast<int32_t>(random.below(2 * static_cast<uint64_t>(most) + 1)) - most;
      const int shift = std::max(0, bits - 24);
      check_sums(stages, x, shift);
      for (const int32_t end : {-most, most}) {
        check_sums(stages, std::vector<int32_t>(n, end), shift);  // the greatest sum
        for (size_t i = 0; i < 16; ++i) {                         // a single one, in every lane
          std::vector<int32_t> one(n);
          one[n - 16 + i] = end;
          check_sums(stages, one, shift);
        }
      }
    }
  }
}

}  // namespace
}  // namespace lmzip

int main() {
  for (const lmzip::Kernel kernel : lmzip::usable_kernels())
    lmzip::check_sums(lmzip::llama_stages(kernel));
}

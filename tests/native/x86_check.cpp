// x86_check.cpp: any bytes pass the transform and back, and the decoder of instructions stays where
// it may be, whatever it is fed.
#include <iterator>
#include <vector>

#include "check.h"
#include "x86_decoder.h"
#include "x86_targets.h"

namespace lmzip {
namespace {

using test::Random;

// Half of the bytes are those that the transform and the decoder look at.
std::vector<uint8_t> code_like(Random& rng, size_t size) {
  constexpr uint8_t kOften[] = {0xE8, 0xE9, 0x0F, 0x84, 0x48, 0x4C, 0x8B, 0x8D, 0x05, 0x00,
                                0xFF, 0x62, 0xC4, 0xC5, 0x38, 0x3A, 0xF6, 0xF7, 0x66, 0xB8};
  std::vector<uint8_t> bytes(size);
  for (uint8_t& byte : bytes) {
    byte = rng.below(2) != 0 ? kOften[rng.below(std::size(kOften))]
                             : static_cast<uint8_t>(rng.below(256));
  }
  return bytes;
}

void check_transform(Random& rng) {
  for (size_t size = 0; size < 200; ++size) {
    for (int round = 0; round < 50; ++round) {
      const std::vector<uint8_t> raw = code_like(rng, size);
      std::vector<uint8_t> bytes = raw;
      x86_to_absolute(bytes);
      x86_to_relative(bytes);
      CHECK(bytes == raw);
      x86_to_relative(bytes);
      x86_to_absolute(bytes);
      CHECK(bytes == raw);
    }
  }
}

void check_decoder(Random& rng) {
  X86Decoder decoder;
  size_t started = 0;
  for (const uint8_t byte : code_like(rng, 1'000'000)) {
    decoder.follow(byte);
    CHECK(decoder.place() < 32 && decoder.kind() < 256);
    started += decoder.place() == X86Decoder::kStart;
  }
  CHECK(started > 100'000);
}

}  // namespace
}  // namespace lmzip

int main() {
  lmzip::test::Random rng(1);
  lmzip::check_transform(rng);
  lmzip::check_decoder(rng);
  std::puts("x86_check: ok");
  return 0;
}

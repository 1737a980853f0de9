// bit_history.cpp: see bit_history.h.
#include "bit_history.h"

#include <algorithm>
#include <cassert>
#include <map>
#include <tuple>
#include <vector>

namespace lmzip {
namespace {

// The counts that a state can hold; between two of them a count grows once in `gap` times.
constexpr std::array<int, 21> kLevels = {0,  1,  2,  3,  4,  5,  6,  7,   8,   10, 12,
                                         16, 20, 24, 32, 48, 64, 96, 128, 192, 255};
// The largest count beside an opposite count of 0, 1, 2, ...
constexpr std::array<int, 8> kLargestBeside = {255, 48, 24, 16, 12, 8, 8, 7};
// What is left of a count (up to 10, then 12 and more, 24 and more) after the opposite bit.
constexpr std::array<int, 11> kAfterOpposite = {0, 1, 2, 3, 3, 4, 4, 5, 5, 5, 6};

int after_opposite(int count) {
  if (count <= 10) return kAfterOpposite[static_cast<size_t>(count)];
  return count < 24 ? 6 : 7;
}

// Up to four bits: the sequence itself, with a leading one.  Beyond: the last bit.
struct State {
  int zeros, ones, order;
  auto key() const { return std::tuple(zeros + ones, zeros, ones, order); }
  bool operator<(const State& other) const { return key() < other.key(); }
};

int level_of(int count) {
  int level = 0;
  while (kLevels[static_cast<size_t>(level)] < count) ++level;
  return level;
}

// The larger count, brought down to what fits beside the smaller one.
void bound(int& zeros, int& ones) {
  int& larger = zeros > ones ? zeros : ones;
  const int smaller = std::min(zeros, ones);
  larger = std::min(larger, kLargestBeside[static_cast<size_t>(std::min(smaller, 7))]);
  if (smaller > 7) zeros = ones = 7;
  const int level = level_of(larger);
  if (kLevels[static_cast<size_t>(level)] > larger)
    larger = kLevels[static_cast<size_t>(level - 1)];
}

State successor(const State& from, int bit, int variant) {
  State to = from;
  int& same = bit ? to.ones : to.zeros;
  int& opposite = bit ? to.zeros : to.ones;
  if (same < 255) {
    const int next = kLevels[static_cast<size_t>(level_of(same) + 1)];
    // Gaps beyond 8 grow too fast here; that is harmless, the counts there mean "many".
    const int gap = std::min(next - same, BitHistory::kVariants);
    if (variant % gap == 0) same = next;
  }
  opposite = after_opposite(opposite);
  bound(to.zeros, to.ones);
  const bool exact = from.zeros + from.ones < 4 && to.zeros + to.ones == from.zeros + from.ones + 1;
  to.order = exact ? from.order * 2 + bit : bit;
  if (!exact && std::min(to.zeros, to.ones) == 0) to.order = 0;
  return to;
}

}  // namespace

BitHistory::BitHistory() {
  std::map<State, int> index{{State{0, 0, 1}, 0}};
  std::vector<State> open{{0, 0, 1}};
  while (!open.empty()) {
    const State from = open.back();
    open.pop_back();
    for (int variant = 0; variant < kVariants; ++variant) {
      for (int bit = 0; bit < 2; ++bit) {
        const State to = successor(from, bit, variant);
        if (index.emplace(to, 0).second) open.push_back(to);
      }
    }
  }
  for (auto& [state, number] : index) number = states_++;
  assert(states_ <= 256);
  for (const auto& [state, number] : index) {
    const auto n = static_cast<size_t>(number);
    zeros_[n] = static_cast<uint8_t>(state.zeros);
    ones_[n] = static_cast<uint8_t>(state.ones);
    initial_[n] = static_cast<uint16_t>((65536 * (5 * state.ones + 2)) /
                                        (5 * (state.zeros + state.ones) + 4));
    for (size_t variant = 0; variant < kVariants; ++variant) {
      for (size_t bit = 0; bit < 2; ++bit) {
        next_[variant][2 * n + bit] = static_cast<uint8_t>(
            index.at(successor(state, static_cast<int>(bit), static_cast<int>(variant))));
      }
    }
  }
}

const BitHistory& bit_history() {
  static const BitHistory machine;
  return machine;
}

}  // namespace lmzip

// placement.h: keeps the threads of a job, which wait for each other, on different CPUs.
//
// Linux sometimes puts two of them on one CPU and leaves another idle: some task came and went, its
// balancer moved a thread out of the way, and now finds both too warm in their cache to be moved
// back, for 5 to 100 ms.  Threads that work by turns then take three times as long.  So a thread
// that has waited for long looks around, and goes to a CPU without another of its job.  Nothing is
// pinned: what the process may use, it may use afterwards.  Elsewhere all of this does nothing.
#pragma once
#include <atomic>
#include <cstddef>
#include <vector>

#include "aligned.h"

namespace lmzip {

class Placement {
 public:
  explicit Placement(size_t threads) : places_(threads) {}

  // Tells the others where this thread runs now: some nanoseconds.
  void note(size_t thread);

  // Moves this thread, if it runs where another was last, to a CPU where none was: some 10 us.
  // Whether it did.
  bool step_aside(size_t thread);

 private:
  struct alignas(kCacheLine) Place {
    std::atomic<int> cpu{-1};  // -1: not known
  };
  std::vector<Place> places_;
};

}  // namespace lmzip

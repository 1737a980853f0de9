// placement.cpp: see placement.h.
#include "placement.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace lmzip {

#if defined(__linux__)

void Placement::note(size_t thread) {
  places_[thread].cpu.store(sched_getcpu(), std::memory_order_relaxed);
}

bool Placement::step_aside(size_t thread) {
  cpu_set_t allowed;  // fails where there are more than 1024 CPUs
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return false;
  cpu_set_t empty = allowed;
  bool shared = false;
  const int here = sched_getcpu();
  for (size_t i = 0; i < places_.size(); ++i) {
    const int cpu = i == thread ? here : places_[i].cpu.load(std::memory_order_relaxed);
    if (cpu < 0) continue;
    shared |= i != thread && cpu == here;
    CPU_CLR(static_cast<size_t>(cpu), &empty);
  }
  if (!shared || CPU_COUNT(&empty) == 0) return false;
  if (sched_setaffinity(0, sizeof empty, &empty) != 0) return false;
  sched_setaffinity(0, sizeof allowed, &allowed);
  note(thread);
  return true;
}

#else

void Placement::note(size_t) {}
bool Placement::step_aside(size_t) { return false; }

#endif

}  // namespace lmzip

// placement_check.cpp: a thread leaves the CPU that it shares with another of its job, and only
// then; afterwards it may run wherever it might before.
#include <cstdio>

#include "check.h"
#include "placement.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace lmzip {
namespace {

#if defined(__linux__)

cpu_set_t affinity() {
  cpu_set_t cpus;
  CHECK(sched_getaffinity(0, sizeof cpus, &cpus) == 0);
  return cpus;
}

// Whether it is done: some sandboxes only pretend.
bool stay_on(int cpu) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<size_t>(cpu), &one);
  return sched_setaffinity(0, sizeof one, &one) == 0 && sched_getcpu() == cpu;
}

// Runs in one thread, which notes for others where it is.
void check_step_aside() {
  const cpu_set_t all = affinity();
  const int here = sched_getcpu();

  if (!stay_on(here)) {
    std::puts("threads cannot be kept on a CPU here: nothing to check");
    return;
  }
  Placement crowded(2);
  crowded.note(0);
  CHECK(!crowded.step_aside(1));  // may not go anywhere else
  CHECK(sched_getcpu() == here);

  CHECK(sched_setaffinity(0, sizeof all, &all) == 0);
  Placement alone(2);
  alone.note(1);
  CHECK(!alone.step_aside(1));  // where the other runs is not known

  if (CPU_COUNT(&all) < 2) {
    std::puts("one CPU only: nowhere to go");
    return;
  }
  Placement placement(3);
  CHECK(stay_on(here));
  placement.note(0);
  // The kernel may move the thread between any two of these calls, but not every time.
  int moved = 0, elsewhere = 0;
  for (int round = 0; round < 100; ++round) {
    CHECK(stay_on(here));
    CHECK(sched_setaffinity(0, sizeof all, &all) == 0);
    if (!placement.step_aside(1)) continue;
    ++moved;
    elsewhere += sched_getcpu() != here;
    const cpu_set_t after = affinity();
    CHECK(CPU_EQUAL(&after, &all));
  }
  CHECK(moved > 0 && elsewhere > 0);

  // With a thread on every CPU there is nowhere to go either.
  Placement full(static_cast<size_t>(CPU_COUNT(&all)) + 1);
  size_t thread = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(static_cast<size_t>(cpu), &all)) continue;
    CHECK(stay_on(cpu));
    full.note(thread++);
  }
  CHECK(sched_setaffinity(0, sizeof all, &all) == 0);
  CHECK(!full.step_aside(thread));
}

#else

void check_step_aside() {
  Placement placement(2);
  placement.note(0);
  placement.note(1);
  CHECK(!placement.step_aside(0));
}

#endif

}  // namespace
}  // namespace lmzip

int main() { lmzip::check_step_aside(); }

// parallel.h: a few threads that work through one job and wait for each other only in passing.
#pragma once
#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "errors.h"
#include "float_mode.h"
#include "placement.h"

namespace lmzip {

// Asks whether to give up: called now and then, from the thread that called run_threads() only.
// May throw.
using Interrupt = std::function<void()>;

// Thrown inside a job when another of its threads has failed; run_threads() swallows it.
struct Stopped {};

// What the threads of one job share.
class Job {
 public:
  Job(size_t threads, Interrupt interrupt)
      : threads_(threads), placement_(threads), interrupt_(std::move(interrupt)) {}

  size_t threads() const { return threads_; }

  // Throws Stopped after another thread's failure, and what the interrupt throws.  Cheap: call it
  // once for each piece of work.
  void check(size_t thread) {
    if (stop_.load(std::memory_order_relaxed)) throw Stopped();
    placement_.note(thread);
    if (thread == 0 && interrupt_ && std::chrono::steady_clock::now() >= next_interrupt_) {
      interrupt_();
      next_interrupt_ = std::chrono::steady_clock::now() + std::chrono::milliseconds(50);
    }
  }

  // Waits until ready().  Such waits are short, or there is nothing else to do: spin first, for a
  // thread that sleeps takes longer to wake than most of them last.  Who is waited for so long may
  // want this very CPU.
  template <typename Ready>
  void wait(size_t thread, Ready ready) {
    for (int round = 0; !ready(); ++round) {
      if (round < kSpins) {
        pause();
        continue;
      }
      check(thread);
      if (round == kSpins) placement_.step_aside(thread);
      if (round < kSpins + kYields) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
    }
  }

  void fail(std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::move(error);
    stop_.store(true, std::memory_order_relaxed);
  }

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  static constexpr int kSpins = 2000;
  static constexpr int kYields = 200;

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
  }

  const size_t threads_;
  Placement placement_;
  Interrupt interrupt_;
  std::chrono::steady_clock::time_point next_interrupt_{};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::exception_ptr error_;
};

// Where the threads of a job meet, round after round.
class Barrier {
 public:
  explicit Barrier(size_t threads) : threads_(threads) {}

  // Once a round for each thread, and not before the round before has ended.  The last to arrive
  // calls finish(), which sees what all have written before, and ends the round.
  template <typename Finish>
  void arrive(Finish finish) {
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < threads_) return;
    arrived_.store(0, std::memory_order_relaxed);
    finish();
    rounds_.fetch_add(1, std::memory_order_release);
  }

  // Returns when so many rounds have ended.
  void wait(Job& job, size_t thread, size_t rounds) const {
    job.wait(thread, [&] { return rounds_.load(std::memory_order_acquire) >= rounds; });
  }

  // A round, until its end.
  void meet(Job& job, size_t thread) {
    const size_t before = rounds_.load(std::memory_order_relaxed);  // none ends without this thread
    arrive([] {});
    wait(job, thread, before + 1);
  }

 private:
  const size_t threads_;
  std::atomic<size_t> arrived_{0}, rounds_{0};
};

// Throws LimitError where the system gives no more threads.  Those that have been started may wait
// for this one: tell them before they are joined.
template <typename Work>
void start_thread(std::vector<std::jthread>& threads, Work work) {
  try {
    threads.emplace_back(std::move(work));
  } catch (const std::system_error& error) {
    throw LimitError(std::string("a thread could not be started (") + error.what() +
                     "): use fewer (-T, threads=), or raise the limits on processes and memory");
  }
}

// Calls work(thread) in the threads of a job, the calling one being number 0, each in the default
// floating-point mode; returns when all are done, and throws the first thing that any has thrown.
// Throws LimitError if a thread cannot be started.
template <typename Work>
void run_threads(Job& job, Work work) {
  const auto guarded = [&](size_t thread) {
    const FloatMode mode;
    try {
      work(thread);
    } catch (const Stopped&) {
    } catch (...) {
      job.fail(std::current_exception());
    }
  };
  {
    std::vector<std::jthread> helpers;
    try {
      for (size_t i = 1; i < job.threads(); ++i) start_thread(helpers, [&, i] { guarded(i); });
      guarded(0);
    } catch (...) {
      job.fail(std::current_exception());
    }
  }
  job.rethrow();
}

}  // namespace lmzip

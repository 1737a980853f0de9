// crew.h: threads that stay, for many short jobs in a row (parallel.h starts its threads anew).
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "parallel.h"

namespace lmzip {

class Crew {
 public:
  // The thread that calls run() is one of them.  Throws LimitError if one cannot be started.
  explicit Crew(size_t threads) {
    try {
      for (size_t i = 1; i < threads; ++i) start_thread(helpers_, [this] { help(); });
    } catch (...) {
      stop();
      throw;
    }
  }
  ~Crew() { stop(); }
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  // Calls work(task) for every task below `tasks`, each once, in any order; returns when all are
  // done, and throws the first thing that any has thrown.  Not for several threads at once.
  void run(size_t tasks, std::function<void(size_t)> work) {
    if (helpers_.empty() || tasks < 2) {
      for (size_t task = 0; task < tasks; ++task) work(task);
      return;
    }
    work_ = std::move(work);
    tasks_ = tasks;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(helpers_.size(), std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);  // all of the above is seen by the helpers
    round_.notify_all();
    drain();
    for (size_t busy; (busy = busy_.load(std::memory_order_acquire)) != 0;)
      busy_.wait(busy, std::memory_order_acquire);
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  // The helpers end, and can be joined.
  void stop() {
    stop_ = true;
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
  }

  void help() {
    for (uint32_t seen = 0;;) {
      round_.wait(seen, std::memory_order_acquire);
      ++seen;  // run() begins no round before all helpers have ended the one before
      if (stop_) return;
      drain();
      if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
    }
  }

  void drain() {
    try {
      for (size_t task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;)
        work_(task);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      next_.store(tasks_, std::memory_order_relaxed);
    }
  }

  std::function<void(size_t)> work_;
  size_t tasks_ = 0;
  bool stop_ = false;  // ordered by round_, as are work_ and tasks_
  std::atomic<uint32_t> round_{0};
  std::atomic<size_t> next_{0}, busy_{0};
  std::mutex mutex_;
  std::exception_ptr error_;
  std::vector<std::jthread> helpers_;  // last: they end before the rest goes
};

}  // namespace lmzip

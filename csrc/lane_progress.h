// lane_progress.h: lets the bands of a lane pass each layer one after the other, though different
// threads work on them: the attention of a band starts when that of the band before is done.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "engine.h"
#include "parallel.h"

namespace lmzip {

class LaneProgress final : public LayerGate {
 public:
  // done: the lane's positions that have passed each gate (a layer, or a stage after the last).
  // The band is [begin, end).
  LaneProgress(Job& job, size_t thread, std::atomic<uint32_t>* done, uint32_t begin, uint32_t end)
      : job_(job), thread_(thread), done_(done), begin_(begin), end_(end) {}

  void enter(size_t gate) override {
    job_.wait(thread_, [&] { return done_[gate].load(std::memory_order_acquire) == begin_; });
  }
  void leave(size_t gate) override { done_[gate].store(end_, std::memory_order_release); }

 private:
  Job& job_;
  size_t thread_;
  std::atomic<uint32_t>* done_;
  uint32_t begin_, end_;
};

}  // namespace lmzip

// token_codec.cpp: see token_codec.h.
#include "token_codec.h"

#include <algorithm>
#include <stdexcept>

#include "distribution.h"
#include "lane_progress.h"
#include "llama_engine.h"
#include "token_frame.h"

namespace lmzip {
namespace {

// --- encoding ---

// The network takes the lanes apart, in a list of tasks, a band of positions of a lane each, lane
// by lane; threads take them in this order.  There are caches for one lane more than there are
// threads: a lane waits until the one that had its cache before is done.  Waits are for earlier
// tasks only.
class TokenEncoder {
 public:
  TokenEncoder(const LlamaModel& model, std::span<const uint32_t> symbols, size_t lanes,
               size_t threads)
      : model_(model),
        frame_(model, symbols, lanes),
        gates_per_lane_(model.arch().n_layers),
        gates_(lanes * gates_per_lane_) {
    const size_t caches = std::min(lanes, threads + 1);
    for (size_t lane = 0; lane < lanes; ++lane) {
      const size_t before = lane < caches ? kNone : lane - caches;
      for (size_t begin = 0; begin < frame_.size(lane); begin += kLlamaRows)
        tasks_.push_back({lane, begin, lane % caches, before});
    }
    threads_ = std::clamp<size_t>(threads, 1, std::max<size_t>(tasks_.size(), 1));
    cache_.emplace_back(model, caches, frame_.longest());
  }

  Payloads run(Interrupt interrupt) {
    Job job(std::move(interrupt));
    run_threads(job, threads_, [&](size_t thread) { work(job, thread); });
    return frame_.finish();
  }

 private:
  static constexpr size_t kNone = ~size_t{0};
  struct Task {
    size_t lane, begin;
    size_t cache, before;  // which cache, and whose it was before
  };

  void work(Job& job, size_t thread) {
    LlamaWorkspace workspace(model_, kLlamaRows);
    AlignedArray<int32_t> logits(kLlamaRows * model_.arch().vocabulary);
    for (size_t i; (i = next_task_.fetch_add(1)) < tasks_.size();) {
      job.check(thread);
      predict_band(job, thread, tasks_[i], workspace, logits.data());
    }
  }

  void predict_band(Job& job, size_t thread, const Task& task, LlamaWorkspace& workspace,
                    int32_t* logits) {
    const size_t begin = task.begin, end = std::min(begin + kLlamaRows, frame_.size(task.lane));
    LlamaRow rows[kLlamaRows];
    for (size_t t = begin; t < end; ++t) {
      rows[t - begin] = {static_cast<uint32_t>(task.cache), static_cast<uint32_t>(t),
                         frame_.input(task.lane, t)};
    }
    if (task.before != kNone) job.wait(thread, [&] { return is_done(task.before); });
    LaneProgress gate(job, thread, &gates_[task.lane * gates_per_lane_],
                      static_cast<uint32_t>(begin), static_cast<uint32_t>(end));
    llama_forward(model_, {rows, end - begin}, cache_[0], workspace, logits, &gate);
    Distribution distribution;
    for (size_t t = begin; t < end; ++t)
      frame_.predict(task.lane, t, logits + (t - begin) * model_.arch().vocabulary, distribution);
  }

  // Whether all bands of a lane have passed the last layer's attention.
  bool is_done(size_t lane) const {
    return gates_[lane * gates_per_lane_ + gates_per_lane_ - 1].load(std::memory_order_acquire) ==
           frame_.size(lane);
  }

  const LlamaModel& model_;
  TokenFrameEncoder frame_;
  const size_t gates_per_lane_;
  std::vector<std::atomic<uint32_t>> gates_;  // (lanes, n_layers)
  std::vector<Task> tasks_;
  std::atomic<size_t> next_task_{0};
  size_t threads_;
  std::vector<LlamaCache> cache_;  // one
};

// --- decoding ---

// Each thread has lanes of its own, and takes a step with all of them at once.  What the network
// says depends on their own tokens alone, so nobody waits for others but before its coders: there
// the frame must have learned from the step before, which the last thread that is done with it sees
// to.
class TokenDecoder {
 public:
  TokenDecoder(const LlamaModel& model, std::span<const std::span<const uint8_t>> payloads,
               size_t raw_size, size_t threads)
      : model_(model),
        frame_(model, payloads, raw_size),
        cache_(model, payloads.size(), frame_.longest()),
        threads_(std::clamp<size_t>(payloads.size() / kLeastShare, 1,
                                    std::clamp<size_t>(threads, 1, kMaxThreads))) {}

  void run(std::span<uint8_t> raw, Interrupt interrupt) {
    Job job(std::move(interrupt));
    run_threads(job, threads_, [&](size_t thread) { work(job, thread); });
    frame_.finish(raw);
  }

 private:
  // For a single row a thread would read all weights, and be no faster than one thread with both.
  static constexpr size_t kLeastShare = 2;

  void work(Job& job, size_t thread) {
    const size_t end = frame_.lanes() * (thread + 1) / threads_;
    std::vector<LlamaRow> rows;
    for (size_t lane = frame_.lanes() * thread / threads_; lane < end; ++lane)
      rows.push_back({static_cast<uint32_t>(lane), 0, model_.arch().start});
    const size_t block = std::min(rows.size(), kLlamaRows);
    LlamaWorkspace workspace(model_, block);
    AlignedArray<int32_t> logits(block * model_.arch().vocabulary);
    Distribution distribution;
    for (size_t t = 0; t < frame_.longest(); ++t) {
      job.check(thread);
      std::erase_if(rows, [&](const LlamaRow& row) { return !frame_.active(row.lane); });
      for (size_t begin = 0; begin < rows.size(); begin += block) {
        const std::span some(rows.data() + begin, std::min(block, rows.size() - begin));
        llama_forward(model_, some, cache_, workspace, logits.data());
        wait_until_learned(job, thread, t);
        decode(some, logits.data(), distribution);
      }
      wait_until_learned(job, thread, t);  // without rows, too: nobody arrives twice in a step
      if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < threads_) continue;
      arrived_.store(0, std::memory_order_relaxed);
      frame_.end_step();
      learned_.store(t + 1, std::memory_order_release);
    }
  }

  void wait_until_learned(Job& job, size_t thread, size_t steps) const {
    job.wait(thread, [&] { return learned_.load(std::memory_order_acquire) == steps; });
  }

  void decode(std::span<LlamaRow> rows, int32_t* logits, Distribution& distribution) {
    for (LlamaRow& row : rows) {
      row.token = frame_.decode(row.lane, logits, distribution);
      // Damaged payloads often end early; there is no need to decode the rest of the frame then.
      if (row.position++ % 64 == 0) frame_.check_truncation(row.lane);
      logits += model_.arch().vocabulary;
    }
  }

  const LlamaModel& model_;
  TokenFrameDecoder frame_;
  LlamaCache cache_;
  const size_t threads_;
  std::atomic<size_t> arrived_{0};  // threads that are done with the current step
  std::atomic<size_t> learned_{0};  // steps
};

}  // namespace

Payloads encode_tokens(const LlamaModel& model, std::span<const uint32_t> symbols, size_t lanes,
                       size_t threads, Interrupt interrupt) {
  if (lanes == 0) throw std::invalid_argument("a frame has at least one lane");
  TokenEncoder encoder(model, symbols, lanes, std::min(threads, kMaxThreads));
  return encoder.run(std::move(interrupt));
}

void decode_tokens(const LlamaModel& model, std::span<const std::span<const uint8_t>> payloads,
                   std::span<uint8_t> raw, size_t threads, Interrupt interrupt) {
  if (payloads.empty()) throw std::invalid_argument("a frame has at least one lane");
  TokenDecoder(model, payloads, raw.size(), threads).run(raw, std::move(interrupt));
}

size_t token_memory(const LlamaModel& model, size_t raw_size, size_t lanes) {
  constexpr size_t kLaneState = 1 << 15;  // its candidates: 532 at most
  // Threads round up the rows that are worked on, to less than twice as many as lanes.
  const size_t row = LlamaWorkspace::memory(model, 1) + model.arch().vocabulary * sizeof(int32_t);
  return LlamaCache::memory(model, lanes, (raw_size + lanes - 1) / lanes) + 2 * lanes * row +
         lanes * kLaneState + 3 * raw_size + Recall::memory() +
         TokenChoice::memory(model.arch().vocabulary);
}

}  // namespace lmzip

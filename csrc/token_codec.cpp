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
  TokenEncoder(const LlamaModel& model, std::span<const std::vector<uint32_t>> lanes,
               size_t threads)
      : model_(model),
        frame_(model, lanes),
        gates_per_lane_(model.arch().n_layers),
        gates_(lanes.size() * gates_per_lane_) {
    const size_t caches = std::min(lanes.size(), threads + 1);
    std::vector<size_t> used;  // lanes that are not empty
    for (size_t lane = 0; lane < lanes.size(); ++lane) {
      if (lanes[lane].empty()) continue;
      const size_t before = used.size() < caches ? kNone : used[used.size() - caches];
      for (size_t begin = 0; begin < lanes[lane].size(); begin += kLlamaRows)
        tasks_.push_back({lane, begin, used.size() % caches, before});
      used.push_back(lane);
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

// In every step each thread decodes one token of its share of the lanes that are not complete yet;
// the last that is done with a step learns from it, for all, and lays down the next.  Lanes end at
// very different steps, for tokens differ in length.
class TokenDecoder {
 public:
  TokenDecoder(const LlamaModel& model, std::span<const std::span<const uint8_t>> payloads,
               std::span<uint8_t> raw, size_t threads)
      : model_(model),
        frame_(model, payloads, raw),
        cache_(model, payloads.size(), (raw.size() + payloads.size() - 1) / payloads.size()),
        threads_(std::clamp<size_t>(payloads.size() / kLeastShare, 1,
                                    std::clamp<size_t>(threads, 1, kMaxThreads))) {
    for (uint32_t lane = 0; lane < payloads.size(); ++lane) {
      if (frame_.active(lane)) rows_.push_back({lane, 0, model.arch().start});
    }
  }

  void run(Interrupt interrupt) {
    Job job(std::move(interrupt));
    run_threads(job, threads_, [&](size_t thread) { work(job, thread); });
    frame_.check_end();
  }

 private:
  // For a single row a thread would read all weights, and be no faster than one thread with both.
  static constexpr size_t kLeastShare = 2;

  void work(Job& job, size_t thread) {
    // 2 * kLeastShare rows are two shares.
    const size_t most = std::max((frame_.lanes() + threads_ - 1) / threads_, 2 * kLeastShare - 1);
    const size_t block = std::min({most, frame_.lanes(), kLlamaRows});
    LlamaWorkspace workspace(model_, block);
    AlignedArray<int32_t> logits(block * model_.arch().vocabulary);
    Distribution distribution;
    for (uint32_t t = 0; !rows_.empty(); ++t) {
      job.check(thread);
      std::span<LlamaRow> rows = share(thread);
      while (!rows.empty()) {
        const size_t some = std::min(block, rows.size());
        decode(rows.first(some), workspace, logits.data(), distribution);
        rows = rows.subspan(some);
      }
      finish_step(job, thread, t);
    }
  }

  std::span<LlamaRow> share(size_t thread) {
    const size_t sharing = std::clamp<size_t>(rows_.size() / kLeastShare, 1, threads_);
    if (thread >= sharing) return {};
    const size_t begin = rows_.size() * thread / sharing;
    return {rows_.data() + begin, rows_.size() * (thread + 1) / sharing - begin};
  }

  void decode(std::span<LlamaRow> rows, LlamaWorkspace& workspace, int32_t* logits,
              Distribution& distribution) {
    llama_forward(model_, rows, cache_, workspace, logits);
    for (LlamaRow& row : rows) {
      row.token = frame_.decode(row.lane, logits, distribution);
      // Damaged payloads often end early; there is no need to decode the rest of the frame then.
      if (row.position++ % 64 == 0) frame_.check_truncation(row.lane);
      logits += model_.arch().vocabulary;
    }
  }

  void finish_step(Job& job, size_t thread, uint32_t t) {
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < threads_) {
      job.wait(thread, [&] { return steps_done_.load(std::memory_order_acquire) > t; });
      return;
    }
    frame_.end_step();
    std::erase_if(rows_, [&](const LlamaRow& row) { return !frame_.active(row.lane); });
    arrived_.store(0, std::memory_order_relaxed);
    steps_done_.store(t + 1, std::memory_order_release);
  }

  const LlamaModel& model_;
  TokenFrameDecoder frame_;
  LlamaCache cache_;
  const size_t threads_;
  std::vector<LlamaRow> rows_;  // of the current step; changed by the last thread of a step only
  std::atomic<size_t> arrived_{0};  // threads that are done with the current step
  std::atomic<uint32_t> steps_done_{0};
};

}  // namespace

Payloads encode_tokens(const LlamaModel& model, std::span<const std::vector<uint32_t>> lanes,
                       size_t threads, Interrupt interrupt) {
  return TokenEncoder(model, lanes, std::min(threads, kMaxThreads)).run(std::move(interrupt));
}

void decode_tokens(const LlamaModel& model, std::span<const std::span<const uint8_t>> payloads,
                   std::span<uint8_t> raw, size_t threads, Interrupt interrupt) {
  if (payloads.empty()) throw std::invalid_argument("a frame has at least one lane");
  TokenDecoder(model, payloads, raw, threads).run(std::move(interrupt));
}

size_t token_memory(const LlamaModel& model, size_t raw_size, size_t lanes) {
  constexpr size_t kLaneState = 1 << 15;  // its candidates: 532 at most
  // Threads round up the rows that are worked on, to less than twice as many as lanes.
  const size_t row = LlamaWorkspace::memory(model, 1) + model.arch().vocabulary * sizeof(int32_t);
  return LlamaCache::memory(model, lanes, (raw_size + lanes - 1) / lanes) + 2 * lanes * row +
         lanes * kLaneState + raw_size + Recall::memory() +
         TokenChoice::memory(model.arch().vocabulary);
}

}  // namespace lmzip

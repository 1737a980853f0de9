// token_codec.cpp: see token_codec.h.
#include "token_codec.h"

#include <algorithm>
#include <deque>
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
    Job job(threads_, std::move(interrupt));
    run_threads(job, [&](size_t thread) { work(job, thread); });
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

// Lanes are shared by the threads, each of which takes a step with all of its own.  Where there are
// not enough for two, threads take all lanes through the network as a team, and share what is left
// to do: a step of few lanes waits for memory, and a team reads the weights once.  It meets 270
// times in a step of 30 layers, though, so that on a busy machine threads of their own do better.
// What the network says of a lane depends on its own tokens alone, so nobody waits for others' but
// before its coders: there the frame must have learned from the step before, which the last thread
// that is done with it sees to.
class TokenDecoder {
 public:
  TokenDecoder(const LlamaModel& model, std::span<const std::span<const uint8_t>> payloads,
               size_t raw_size, size_t threads)
      : model_(model),
        frame_(model, payloads, raw_size),
        cache_(model, payloads.size(), frame_.longest()),
        n_teams_(teams(payloads.size(), std::clamp<size_t>(threads, 1, kMaxThreads))),
        team_size_(n_teams_ > 1 ? 1 : std::clamp<size_t>(threads, 1, kMostTogether)),
        steps_(n_teams_ * team_size_) {
    const size_t rows = std::min((frame_.lanes() + n_teams_ - 1) / n_teams_, kLlamaRows);
    for (size_t i = 0; i < n_teams_; ++i) teams_.emplace_back(model, rows, team_size_);
  }

  void run(std::span<uint8_t> raw, Interrupt interrupt) {
    Job job(n_teams_ * team_size_, std::move(interrupt));
    run_threads(job, [&](size_t thread) { work(job, thread); });
    frame_.finish(raw);
  }

  static constexpr size_t kMostTogether = 4;  // threads: memory is at its limit with fewer

  static size_t teams(size_t lanes, size_t threads) {
    return std::clamp<size_t>(lanes / kLeastShare, 1, threads);
  }

 private:
  static constexpr size_t kLeastShare = 2;  // lanes of a thread

  // One thread, or several that share lanes; so many rows at a time.
  struct Team {
    Team(const LlamaModel& model, size_t most, size_t threads)
        : rows(most),
          workspace(model, most, threads),
          logits(most * model.arch().vocabulary),
          barrier(threads) {}

    size_t rows;
    LlamaWorkspace workspace;
    AlignedArray<int32_t> logits;
    Barrier barrier;
  };

  struct Member : LlamaTeam {
    Member(size_t thread, size_t threads, Barrier& barrier, Job& job, size_t job_thread)
        : LlamaTeam(thread, threads), barrier_(barrier), job_(job), job_thread_(job_thread) {}
    void meet() override { barrier_.meet(job_, job_thread_); }

   private:
    Barrier& barrier_;
    Job& job_;
    const size_t job_thread_;
  };

  void work(Job& job, size_t thread) {
    const size_t place = thread / team_size_;
    Team& team = teams_[place];
    Member member(thread % team_size_, team_size_, team.barrier, job, thread);
    const size_t first = frame_.lanes() * place / n_teams_;
    const size_t last = frame_.lanes() * (place + 1) / n_teams_;
    std::vector<LlamaRow> rows;
    for (size_t lane = first; lane < last; ++lane)
      rows.push_back({static_cast<uint32_t>(lane), 0, model_.arch().start});
    Distribution distribution;
    for (uint32_t t = 0; t < frame_.longest(); ++t) {
      job.check(thread);
      for (size_t begin = 0; begin < rows.size(); begin += team.rows) {
        const std::span some(rows.data() + begin, std::min(team.rows, rows.size() - begin));
        llama_forward(model_, some, cache_, team.workspace, team.logits.data(), member);
        steps_.wait(job, thread, t);
        const auto [own, own_end] = member.part(some.size());
        for (size_t i = own; i < own_end; ++i)
          decode(some[i], team.logits.data() + i * model_.arch().vocabulary, distribution);
        for (LlamaRow& row : some) ++row.position;  // whose tokens only their own thread knows
      }
      steps_.arrive([&] { frame_.end_step(); });
    }
  }

  // Lanes that have ended, one step before the others, are not left out: rows keep their threads.
  void decode(LlamaRow& row, int32_t* logits, Distribution& distribution) {
    if (!frame_.active(row.lane)) return;
    row.token = frame_.decode(row.lane, logits, distribution);
    // Damaged payloads often end early; there is no need to decode the rest of the frame then.
    if (row.position % 64 == 0) frame_.check_truncation(row.lane);
  }

  const LlamaModel& model_;
  TokenFrameDecoder frame_;
  LlamaCache cache_;
  const size_t n_teams_, team_size_;
  std::deque<Team> teams_;
  Barrier steps_;
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

size_t most_token_threads(size_t lanes) {
  const size_t teams = TokenDecoder::teams(lanes, kMaxThreads);
  return teams > 1 ? teams : TokenDecoder::kMostTogether;
}

size_t token_memory(const LlamaModel& model, size_t raw_size, size_t lanes) {
  constexpr size_t kLaneState = 1 << 15;  // its candidates: 532 at most
  const size_t logits = model.arch().vocabulary * sizeof(int32_t);
  const size_t rows = std::min(lanes, kLlamaRows);
  const size_t team =
      LlamaWorkspace::memory(model, rows, TokenDecoder::kMostTogether) + rows * logits;
  // Threads round up the rows that are worked on, to less than twice as many as lanes.
  const size_t apart = 2 * lanes * (LlamaWorkspace::memory(model, 1) + logits);
  return LlamaCache::memory(model, lanes, (raw_size + lanes - 1) / lanes) + std::max(team, apart) +
         lanes * kLaneState + 3 * raw_size + Recall::memory() +
         TokenChoice::memory(model.arch().vocabulary);
}

}  // namespace lmzip

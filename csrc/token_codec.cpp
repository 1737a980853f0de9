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
        gates_(lanes * gates_per_lane_),
        band_(band(symbols.size(), threads)) {
    const size_t caches = std::min(lanes, threads + 1);
    for (size_t lane = 0; lane < lanes; ++lane) {
      const size_t before = lane < caches ? kNone : lane - caches;
      for (size_t begin = 0; begin < frame_.size(lane); begin += band_)
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
  static constexpr size_t kPart = 64;  // positions whose logits are there at a time

  // The more positions, the fewer times weights are read from memory; but threads that have no lane
  // of their own wait for the bands before.
  static size_t band(size_t symbols, size_t threads) {
    constexpr size_t kTasks = 4;  // of a thread, at least
    return std::clamp(symbols / (kTasks * std::max<size_t>(threads, 1)), kPart, kLlamaRows) /
           kPart * kPart;
  }
  struct Task {
    size_t lane, begin;
    size_t cache, before;  // which cache, and whose it was before
  };

  void work(Job& job, size_t thread) {
    LlamaWorkspace workspace(model_, band_);
    AlignedArray<int32_t> logits(kPart * model_.arch().vocabulary);
    for (size_t i; (i = next_task_.fetch_add(1)) < tasks_.size();) {
      job.check(thread);
      predict_band(job, thread, tasks_[i], workspace, logits.data());
    }
  }

  void predict_band(Job& job, size_t thread, const Task& task, LlamaWorkspace& workspace,
                    int32_t* logits) {
    const size_t begin = task.begin, end = std::min(begin + band_, frame_.size(task.lane));
    LlamaRow rows[kLlamaRows];
    for (size_t t = begin; t < end; ++t) {
      rows[t - begin] = {static_cast<uint32_t>(task.cache), static_cast<uint32_t>(t),
                         frame_.input(task.lane, t)};
    }
    if (task.before != kNone) job.wait(thread, [&] { return is_done(task.before); });
    LaneProgress gate(job, thread, &gates_[task.lane * gates_per_lane_],
                      static_cast<uint32_t>(begin), static_cast<uint32_t>(end));
    Distribution distribution;
    const auto predict = [&](size_t first, size_t count) {
      for (size_t i = 0; i < count; ++i) {
        int32_t* row = logits + i * model_.arch().vocabulary;
        frame_.predict(task.lane, begin + first + i, row, distribution);
      }
    };
    llama_forward(model_, {rows, end - begin}, cache_[0], workspace, logits, &gate, kPart, predict);
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
  const size_t band_;                         // positions of a task
  std::vector<Task> tasks_;
  std::atomic<size_t> next_task_{0};
  size_t threads_;
  std::vector<LlamaCache> cache_;  // one
};

// --- decoding ---

// Lanes are shared by the teams, each of which takes a step with all of its own; within a team
// threads share what is to do.  What the network says of a lane depends on its own tokens alone, so
// nobody waits for others' but before its coders: there the frame must have learned from the step
// before, which the last thread that is done with it sees to.
class TokenDecoder {
 public:
  TokenDecoder(const LlamaModel& model, std::span<const std::span<const uint8_t>> payloads,
               size_t raw_size, TokenTeams teams)
      : model_(model),
        frame_(model, payloads, raw_size),
        cache_(model, payloads.size(), frame_.longest()),
        plan_(teams),
        steps_(plan_.threads()) {
    const size_t rows = team_rows(payloads.size(), plan_.teams);
    for (size_t i = 0; i < plan_.teams; ++i) teams_.emplace_back(model, rows, plan_.size);
  }

  void run(std::span<uint8_t> raw, Interrupt interrupt) {
    Job job(plan_.threads(), std::move(interrupt));
    run_threads(job, [&](size_t thread) { work(job, thread); });
    frame_.finish(raw);
  }

  // Bytes of the teams' buffers.
  static size_t memory(const LlamaModel& model, size_t lanes, TokenTeams teams) {
    const size_t rows = team_rows(lanes, teams.teams);
    const size_t logits = rows * model.arch().vocabulary * sizeof(int32_t);
    return teams.teams * (LlamaWorkspace::memory(model, rows, teams.size) + logits);
  }

 private:
  // At a time.
  static size_t team_rows(size_t lanes, size_t teams) {
    constexpr size_t kMostRows = 64;  // more were no faster, with as many lanes and more logits
    return std::min((lanes + teams - 1) / teams, kMostRows);
  }

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
    const size_t place = thread / plan_.size;
    Team& team = teams_[place];
    Member member(thread % plan_.size, plan_.size, team.barrier, job, thread);
    const size_t first = frame_.lanes() * place / plan_.teams;
    const size_t last = frame_.lanes() * (place + 1) / plan_.teams;
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
  const TokenTeams plan_;
  std::deque<Team> teams_;
  Barrier steps_;
};

constexpr size_t kLeastShare = 2;  // lanes of a team
constexpr size_t kAmxRows = 48;    // of a team, at most, where threads are few

}  // namespace

Payloads encode_tokens(const LlamaModel& model, std::span<const uint32_t> symbols, size_t lanes,
                       size_t threads, Interrupt interrupt) {
  if (lanes == 0) throw std::invalid_argument("a frame has at least one lane");
  TokenEncoder encoder(model, symbols, lanes, std::min(threads, kMaxThreads));
  return encoder.run(std::move(interrupt));
}

void decode_tokens(const LlamaModel& model, std::span<const std::span<const uint8_t>> payloads,
                   std::span<uint8_t> raw, size_t threads, Interrupt interrupt) {
  const TokenTeams teams = token_teams(payloads.size(), threads, model.kernel());
  decode_tokens(model, payloads, raw, teams, std::move(interrupt));
}

void decode_tokens(const LlamaModel& model, std::span<const std::span<const uint8_t>> payloads,
                   std::span<uint8_t> raw, TokenTeams teams, Interrupt interrupt) {
  if (payloads.empty()) throw std::invalid_argument("a frame has at least one lane");
  if (teams.teams == 0 || teams.teams > std::min(payloads.size(), kMaxThreads) || teams.size == 0 ||
      teams.size > kMostTokenTeam)
    throw std::invalid_argument("each team has 1 to 4 threads, and a lane at least");
  TokenDecoder(model, payloads, raw.size(), teams).run(raw, std::move(interrupt));
}

// A step of few rows waits for memory, and a team reads the weights once.  It meets 270 times in a
// step of 30 layers, though, so that on a busy machine threads of their own do better as soon as
// products take about as long as the weights do to come: from some rows on, with AMX many.
TokenTeams token_teams(size_t lanes, size_t threads, Kernel kernel) {
  threads = std::clamp<size_t>(threads, 1, kMaxThreads);
  const size_t most = std::clamp<size_t>(lanes / kLeastShare, 1, threads);
  if (kernel != Kernel::kAmx) return {most, most > 1 ? 1 : std::min(threads, kMostTokenTeam)};
  const size_t by_lanes = (lanes + kAmxRows - 1) / kAmxRows;
  const size_t by_threads = (threads + kMostTokenTeam - 1) / kMostTokenTeam;
  const size_t wanted = std::min(most, std::max(by_lanes, by_threads));
  const size_t size = std::min(threads / wanted, kMostTokenTeam);
  return {std::min(most, threads / size), size};
}

size_t most_token_threads(size_t lanes, Kernel kernel) {
  return token_teams(lanes, kMaxThreads, kernel).threads();
}

size_t token_memory(const LlamaModel& model, size_t raw_size, size_t lanes) {
  constexpr size_t kLaneState = 1 << 15;  // its candidates: 532 at most
  size_t working = 0;
  for (const Kernel kernel : {Kernel::kPortable, Kernel::kAmx}) {
    for (size_t threads = 1; threads <= kMaxThreads; ++threads) {
      const TokenTeams teams = token_teams(lanes, threads, kernel);
      working = std::max(working, TokenDecoder::memory(model, lanes, teams));
    }
  }
  return LlamaCache::memory(model, lanes, (raw_size + lanes - 1) / lanes) + working +
         lanes * kLaneState + 3 * raw_size + Recall::memory() +
         TokenChoice::memory(model.arch().vocabulary);
}

}  // namespace lmzip

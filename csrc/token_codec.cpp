// token_codec.cpp: see token_codec.h.
#include "token_codec.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "distribution.h"
#include "errors.h"
#include "lane_progress.h"
#include "llama_engine.h"
#include "range_coder.h"
#include "recall.h"

namespace lmzip {
namespace {

constexpr int kByteBits = 8;    // a raw byte: one of 256, all alike
constexpr int kGuessBits = 16;  // whether a guess is right
constexpr uint32_t kGuessTotal = 1 << kGuessBits;

// What stands before a symbol's successor: its token, or the escape.
uint32_t input_of(const LlamaModel& model, uint32_t symbol) {
  return symbol < model.arch().vocabulary ? symbol : model.arch().escape;
}

// The model's probability of a guess, in 1..65535 of 2^16.
uint32_t probability(const Distribution& distribution, const Recall::Guess& guess) {
  return std::clamp<uint32_t>(distribution.interval(guess.token).freq >> (kFreqBits - kGuessBits),
                              1, kGuessTotal - 1);
}

// The row's distribution without a guess that was wrong.
void exclude(Distribution& distribution, const Recall::Guess& guess, int32_t* row, size_t size) {
  row[guess.token] = -kLlamaLogitMax;
  distribution.assign(RowKind::kLogits, row, size);
}

// --- encoding ---

// Three passes.  The guesses depend on tokens alone: first, for all lanes in lockstep.  Then the
// network, the lanes apart: what each guess and each token would cost.  Last, in lockstep again,
// the confidence in the guesses, and the coding.
//
// The second pass is a list of tasks, a band of positions of a lane each, lane by lane; threads
// take them in this order.  There are caches for one lane more than there are threads: a lane waits
// until the one that had its cache before is done.  Waits are for earlier tasks only.
class TokenEncoder {
 public:
  TokenEncoder(const LlamaModel& model, std::span<const std::vector<uint32_t>> lanes,
               size_t threads)
      : model_(model),
        lanes_(lanes),
        gates_per_lane_(model.arch().n_layers),
        gates_(lanes.size() * gates_per_lane_),
        records_(lanes.size()) {
    const size_t caches = std::min(lanes.size(), threads + 1);
    std::vector<size_t> used;  // lanes that are not empty
    for (size_t lane = 0; lane < lanes.size(); ++lane) {
      if (lanes[lane].empty()) continue;
      const size_t before = used.size() < caches ? kNone : used[used.size() - caches];
      longest_ = std::max(longest_, lanes[lane].size());
      records_[lane].resize(lanes[lane].size());
      for (size_t begin = 0; begin < lanes[lane].size(); begin += kLlamaRows)
        tasks_.push_back({lane, begin, used.size() % caches, before});
      used.push_back(lane);
    }
    threads_ = std::clamp<size_t>(threads, 1, std::max<size_t>(tasks_.size(), 1));
    cache_.emplace_back(model, caches, longest_);
  }

  Payloads run(Interrupt interrupt) {
    Recall recall(lanes_.size());
    make_guesses(recall);
    Job job(std::move(interrupt));
    run_threads(job, threads_, [&](size_t thread) { work(job, thread); });
    return code(recall);
  }

 private:
  static constexpr size_t kNone = ~size_t{0};
  struct Task {
    size_t lane, begin;
    size_t cache, before;  // which cache, and whose it was before
  };
  struct Record {
    Recall::Guess guess;
    uint32_t p16;       // of the guess
    Interval interval;  // of the token, the guess excluded if it was wrong
  };

  void make_guesses(Recall& recall) {
    for (size_t t = 0; t < longest_; ++t) {
      for (size_t lane = 0; lane < lanes_.size(); ++lane) {
        if (t < lanes_[lane].size()) records_[lane][t].guess = recall.guess(lane);
      }
      for (size_t lane = 0; lane < lanes_.size(); ++lane) {
        if (t < lanes_[lane].size()) recall.remember(lane, input_of(model_, lanes_[lane][t]));
      }
    }
  }

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
    const std::vector<uint32_t>& symbols = lanes_[task.lane];
    const size_t begin = task.begin, end = std::min(begin + kLlamaRows, symbols.size());
    LlamaRow rows[kLlamaRows];
    for (size_t t = begin; t < end; ++t) {
      const uint32_t token = t == 0 ? model_.arch().start : input_of(model_, symbols[t - 1]);
      rows[t - begin] = {static_cast<uint32_t>(task.cache), static_cast<uint32_t>(t), token};
    }
    if (task.before != kNone) job.wait(thread, [&] { return is_done(task.before); });
    LaneProgress gate(job, thread, &gates_[task.lane * gates_per_lane_],
                      static_cast<uint32_t>(begin), static_cast<uint32_t>(end));
    llama_forward(model_, {rows, end - begin}, cache_[0], workspace, logits, &gate);

    const size_t vocabulary = model_.arch().vocabulary;
    Distribution distribution;
    for (size_t t = begin; t < end; ++t) {
      Record& record = records_[task.lane][t];
      int32_t* row = logits + (t - begin) * vocabulary;
      const uint32_t token = input_of(model_, symbols[t]);
      distribution.assign(RowKind::kLogits, row, vocabulary);
      if (record.guess.context != 0) {
        record.p16 = probability(distribution, record.guess);
        if (record.guess.token == token) continue;
        exclude(distribution, record.guess, row, vocabulary);
      }
      record.interval = distribution.interval(token);
    }
  }

  // Whether all bands of a lane have passed the last layer's attention.
  bool is_done(size_t lane) const {
    return gates_[lane * gates_per_lane_ + gates_per_lane_ - 1].load(std::memory_order_acquire) ==
           lanes_[lane].size();
  }

  Payloads code(Recall& recall) {
    std::vector<RangeEncoder> coders(lanes_.size());
    for (size_t t = 0; t < longest_; ++t) {
      for (size_t lane = 0; lane < lanes_.size(); ++lane) {
        if (t < lanes_[lane].size())
          code_symbol(recall, records_[lane][t], lanes_[lane][t], coders[lane]);
      }
      for (size_t lane = 0; lane < lanes_.size(); ++lane) {
        if (t >= lanes_[lane].size()) continue;
        const Record& record = records_[lane][t];
        if (record.guess.context != 0) {
          recall.adapt(record.guess, record.p16,
                       record.guess.token == input_of(model_, lanes_[lane][t]));
        }
      }
    }
    Payloads payloads;
    for (RangeEncoder& coder : coders) payloads.push_back(coder.finish());
    return payloads;
  }

  void code_symbol(const Recall& recall, const Record& record, uint32_t symbol,
                   RangeEncoder& coder) const {
    bool known = false;
    if (record.guess.context != 0) {
      const uint32_t p = recall.refine(record.guess, record.p16);
      known = record.guess.token == input_of(model_, symbol);
      coder.encode(known ? 0 : p, known ? p : kGuessTotal - p, kGuessBits);
    }
    if (!known) coder.encode(record.interval.lo, record.interval.freq, kFreqBits);
    const size_t vocabulary = model_.arch().vocabulary;
    if (symbol >= vocabulary)
      coder.encode(static_cast<uint32_t>(symbol - vocabulary), 1, kByteBits);
  }

  const LlamaModel& model_;
  const std::span<const std::vector<uint32_t>> lanes_;
  const size_t gates_per_lane_;
  std::vector<std::atomic<uint32_t>> gates_;  // (lanes, n_layers)
  std::vector<std::vector<Record>> records_;  // (lanes, positions)
  std::vector<Task> tasks_;
  std::atomic<size_t> next_task_{0};
  size_t threads_, longest_ = 0;
  std::vector<LlamaCache> cache_;  // one
};

void check_symbols(const LlamaModel& model, std::span<const std::vector<uint32_t>> lanes) {
  const size_t vocabulary = model.arch().vocabulary;
  for (const std::vector<uint32_t>& lane : lanes) {
    for (const uint32_t s : lane) {
      if (s < vocabulary ? model.token(s).empty() : s >= vocabulary + 256)
        throw std::invalid_argument("symbol " + std::to_string(s) + " stands for no bytes");
    }
  }
}

// --- decoding ---

// Each thread decodes a group of neighboring lanes, one token of each in every step; the last that
// is done with a step learns from it, for all.
class TokenDecoder {
 public:
  TokenDecoder(const LlamaModel& model, std::span<const std::span<const uint8_t>> payloads,
               std::span<uint8_t> raw, size_t threads)
      : model_(model),
        coders_(payloads.begin(), payloads.end()),
        recall_(payloads.size()),
        steps_(payloads.size()),
        cache_(model, payloads.size(), (raw.size() + payloads.size() - 1) / payloads.size()),
        groups_(std::clamp<size_t>(threads, 1, std::min(payloads.size(), kMaxThreads))),
        finished_(raw.empty()) {
    const size_t stride = (raw.size() + payloads.size() - 1) / payloads.size();
    for (size_t lane = 0; lane < payloads.size(); ++lane) {
      const size_t begin = std::min(lane * stride, raw.size());
      rest_.push_back(raw.subspan(begin, std::min(stride, raw.size() - begin)));
    }
  }

  void run(Interrupt interrupt) {
    Job job(std::move(interrupt));
    run_threads(job, groups_, [&](size_t group) { decode_group(job, group); });
    for (size_t lane = 0; lane < coders_.size(); ++lane) {
      if (coders_[lane].end() != StreamEnd::kExact)
        throw corrupt(lane, "is not the encoding of what it decodes to");
    }
  }

 private:
  // What a lane has decoded in the current step.
  struct Step {
    bool active;
    Recall::Guess guess;
    uint32_t p16;
    uint32_t token;
  };

  static CorruptError corrupt(size_t lane, const char* what) {
    return CorruptError("the payload of lane " + std::to_string(lane) + " " + what +
                        "; the file is damaged");
  }

  void decode_group(Job& job, size_t group) {
    const size_t begin = coders_.size() * group / groups_;
    const size_t end = coders_.size() * (group + 1) / groups_;
    std::vector<LlamaRow> rows;
    for (size_t lane = begin; lane < end; ++lane) {
      if (!rest_[lane].empty())
        rows.push_back({static_cast<uint32_t>(lane), 0, model_.arch().start});
    }
    const size_t block = std::clamp<size_t>(rows.size(), 1, kLlamaRows);
    const size_t vocabulary = model_.arch().vocabulary;
    LlamaWorkspace workspace(model_, block);
    AlignedArray<int32_t> logits(block * vocabulary);
    Distribution distribution;
    for (uint32_t t = 0; !finished_; ++t) {
      job.check(group);
      for (size_t first = 0; first < rows.size(); first += block) {
        const std::span some(rows.data() + first, std::min(block, rows.size() - first));
        llama_forward(model_, some, cache_, workspace, logits.data());
        for (size_t i = 0; i < some.size(); ++i) {
          some[i].token = decode_symbol(some[i].lane, logits.data() + i * vocabulary, distribution);
          some[i].position = t + 1;
        }
      }
      if (t % 64 == 0) check_truncation(begin, end);
      std::erase_if(rows, [&](const LlamaRow& row) { return rest_[row.lane].empty(); });
      finish_step(job, group, t);
    }
  }

  void finish_step(Job& job, size_t group, uint32_t t) {
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < groups_) {
      job.wait(group, [&] { return steps_done_.load(std::memory_order_acquire) > t; });
      return;
    }
    for (size_t lane = 0; lane < steps_.size(); ++lane) {
      Step& step = steps_[lane];
      if (!step.active) continue;
      if (step.guess.context != 0)
        recall_.adapt(step.guess, step.p16, step.guess.token == step.token);
      recall_.remember(lane, step.token);
      step.active = false;
    }
    finished_ = std::all_of(rest_.begin(), rest_.end(), [](const auto& r) { return r.empty(); });
    arrived_.store(0, std::memory_order_relaxed);
    steps_done_.store(t + 1, std::memory_order_release);
  }

  // Puts a symbol's bytes; returns its token.
  uint32_t decode_symbol(size_t lane, int32_t* logits, Distribution& distribution) {
    const size_t vocabulary = model_.arch().vocabulary;
    RangeDecoder& coder = coders_[lane];
    Step& step = steps_[lane] = {true, recall_.guess(lane), 0, 0};
    distribution.assign(RowKind::kLogits, logits, vocabulary);
    bool known = false;
    if (step.guess.context != 0) {
      step.p16 = probability(distribution, step.guess);
      const uint32_t p = recall_.refine(step.guess, step.p16);
      known = coder.peek(kGuessBits) < p;
      coder.consume(known ? 0 : p, known ? p : kGuessTotal - p, kGuessBits);
      if (!known) exclude(distribution, step.guess, logits, vocabulary);
    }
    step.token = step.guess.token;
    if (!known) {
      const FoundSymbol found = distribution.find(coder.peek(kFreqBits));
      coder.consume(found.interval.lo, found.interval.freq, kFreqBits);
      step.token = static_cast<uint32_t>(found.symbol);
    }
    if (step.token == model_.arch().escape) {
      const uint32_t byte = coder.peek(kByteBits);
      coder.consume(byte, 1, kByteBits);
      const auto value = static_cast<uint8_t>(byte);
      put(lane, {&value, 1});
    } else {
      put(lane, model_.token(step.token));
    }
    return step.token;
  }

  void put(size_t lane, std::span<const uint8_t> bytes) {
    if (bytes.empty() || bytes.size() > rest_[lane].size())
      throw corrupt(lane, "holds a token that cannot be there");
    std::memcpy(rest_[lane].data(), bytes.data(), bytes.size());
    rest_[lane] = rest_[lane].subspan(bytes.size());
  }

  // Damaged payloads often end early; there is no need to decode the rest of the frame then.
  void check_truncation(size_t begin, size_t end) const {
    for (size_t lane = begin; lane < end; ++lane) {
      if (coders_[lane].truncated()) throw corrupt(lane, "ends before its bytes do");
    }
  }

  const LlamaModel& model_;
  std::vector<RangeDecoder> coders_;      // (lanes)
  std::vector<std::span<uint8_t>> rest_;  // (lanes): bytes that are still to be decoded
  Recall recall_;
  std::vector<Step> steps_;  // (lanes)
  LlamaCache cache_;
  const size_t groups_;
  std::atomic<size_t> arrived_{0};  // groups that are done with the current step
  std::atomic<uint32_t> steps_done_{0};
  bool finished_;  // written by the last group of a step, before steps_done_
};

}  // namespace

Payloads encode_tokens(const LlamaModel& model, std::span<const std::vector<uint32_t>> lanes,
                       size_t threads, Interrupt interrupt) {
  check_symbols(model, lanes);
  return TokenEncoder(model, lanes, std::min(threads, kMaxThreads)).run(std::move(interrupt));
}

void decode_tokens(const LlamaModel& model, std::span<const std::span<const uint8_t>> payloads,
                   std::span<uint8_t> raw, size_t threads, Interrupt interrupt) {
  if (payloads.empty()) throw std::invalid_argument("a frame has at least one lane");
  TokenDecoder(model, payloads, raw, threads).run(std::move(interrupt));
}

size_t token_memory(const LlamaModel& model, size_t raw_size, size_t lanes) {
  // Threads round up the rows that are worked on, to twice as many as lanes at most.
  const size_t row = LlamaWorkspace::memory(model, 1) + model.arch().vocabulary * sizeof(int32_t);
  return LlamaCache::memory(model, lanes, (raw_size + lanes - 1) / lanes) + 2 * lanes * row +
         lanes * 256 + raw_size + Recall::memory();
}

}  // namespace lmzip

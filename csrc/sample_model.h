// sample_model.h: bytes as samples: pixels of a raw image, points of a recording.
//
// SampleLayout, shared by the lanes, finds from the decoded bytes how they lie: the distance to the
// same component of the pixel to the left, to the row above, or that they are 16-bit samples.
// SamplePredictor, one a lane, predicts the next byte linearly from its neighbors, by two
// normalized LMS filters, and makes contexts of the predictions and the neighbors.  Integers only.
// Specified in docs/mixer.md section 6.5.
#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "mixer_lane.h"

namespace lmzip {

// Every kEvery bytes of the frame the lane at hand compares its last kWindow bytes with those d
// before, for every distance d; the scores are sums of absolute differences and fade by a half.
class SampleLayout {
 public:
  static constexpr uint32_t kEvery = 2048, kWindow = 256, kMinRow = 24, kMaxRow = 4096;

  uint32_t pixel() const { return pixel_; }      // bytes: 1, 2, 3 or 4
  uint32_t row() const { return row_; }          // bytes
  bool wide() const { return wide_; }            // 16-bit samples, the low byte first
  uint32_t high_at() const { return high_at_; }  // the positions of high bytes, modulo 2

  void count_byte(const Lane& lane, const SharedPast& past) {
    if (++counted_ % kEvery == 0) measure(lane, past);
  }

 private:
  void measure(const Lane& lane, const SharedPast& past) {
    const uint32_t history = lane.pos() - lane.begin();
    if (history < 2 * kWindow) return;
    const uint8_t* now = past.bytes.data() + lane.pos() - kWindow;
    const uint32_t most = std::min(kMaxRow, history - kWindow);
    for (uint32_t d = 1; d <= most; ++d) {
      uint32_t sum = 0;
      for (uint32_t i = 0; i < kWindow; ++i)
        sum += static_cast<uint32_t>(std::abs(now[i] - (now - d)[i]));
      scores_[d] = seen_[d] ? (scores_[d] + sum) / 2 : sum;
      seen_[d] = true;
    }
    pixel_ = 1;
    for (uint32_t d = 2; d <= 4; ++d) {
      if (scores_[d] < scores_[pixel_]) pixel_ = d;
    }
    row_ = kMinRow;
    for (uint32_t d = kMinRow; d <= most; ++d) {
      if (scores_[d] < scores_[row_]) row_ = d;
    }
    find_wide(lane, now);
  }

  // Of 16-bit samples one byte of two is smooth, the other nearly noise.
  void find_wide(const Lane& lane, const uint8_t* now) {
    std::array<uint32_t, 2> rough{};
    for (uint32_t i = 0; i < kWindow; ++i) {
      const auto apart = static_cast<uint32_t>(
          std::abs(static_cast<int8_t>(static_cast<uint8_t>(now[i] - (now - pixel_)[i]))));
      rough[(lane.pos() - kWindow + i) % 2] += apart;
    }
    for (size_t q = 0; q < 2; ++q) rough_[q] = (rough_[q] + rough[q]) / 2;
    high_at_ = rough_[1] < rough_[0] ? 1 : 0;
    wide_ = pixel_ % 2 == 0 && 3 * rough_[high_at_] < rough_[1 - high_at_];
  }

  std::array<uint32_t, kMaxRow + 1> scores_{};
  std::array<bool, kMaxRow + 1> seen_{};
  std::array<uint32_t, 2> rough_{};
  uint32_t counted_ = 0, pixel_ = 1, row_ = kMinRow, high_at_ = 0;
  bool wide_ = false;
};

// Normalized least mean squares: weights (16 bits of fraction) that follow the error.
class LinearFilter {
 public:
  static constexpr size_t kTaps = 20;
  using Taps = std::array<int32_t, kTaps>;

  // |tap| < 2^17, and weights below 2^21, so the sum stays below 2^43.
  int64_t predict(const Taps& taps) const {
    int64_t sum = 0;
    for (size_t i = 0; i < kTaps; ++i) sum += int64_t{weights_[i]} * taps[i];
    return sum >> 16;
  }

  void learn(const Taps& taps, int64_t error, int shift) {
    int64_t power = 1;
    for (const int32_t tap : taps) power += int64_t{tap} * tap;
    const int64_t gain = error * (int64_t{1} << 32) / power;
    for (size_t i = 0; i < kTaps; ++i) {
      const int64_t moved = weights_[i] + ((gain * taps[i]) >> (16 + shift));
      weights_[i] = static_cast<int32_t>(std::clamp<int64_t>(moved, -kMax, kMax));
    }
  }

 private:
  static constexpr int64_t kMax = (1 << 21) - 1;
  std::array<int32_t, kTaps> weights_{};
};

class SamplePredictor {
 public:
  static constexpr size_t kContexts = 10;

  // After a byte of the lane: learns from it and prepares for the next.
  void advance(const Lane& lane, const SharedPast& past, const SampleLayout& layout) {
    if (filtered_) learn(lane);
    filtered_ = false;
    wide_ = layout.wide();
    if (!wide_) {
      prepare_pixel(lane, past, layout);
    } else if (lane.pos() % 2 != layout.high_at()) {
      prepare_low(lane, past, layout);
    } else {
      prepare_high(lane);
    }
  }

  uint32_t context(size_t i) const { return contexts_[i]; }
  uint32_t guess() const { return guess_; }        // the likeliest byte, roughly
  uint32_t activity() const { return activity_; }  // 0..31: 8 * channel + size of recent errors

 private:
  static constexpr size_t kFilters = 2;
  static constexpr std::array<int, kFilters> kRates = {5, 7};  // a step of 2^-rate: fast, slow
  static constexpr int kScale = 16;                            // pixels are filtered in sixteenths

  // The filters have predicted the pixel or the sample that this byte completes.
  void learn(const Lane& lane) {
    const auto sample = static_cast<int16_t>(lane.byte_back(1) << 8 | lane.byte_back(2));
    const int32_t pixel = (static_cast<int32_t>(lane.byte_back(1)) - base_) * kScale;
    const int64_t actual = wide_ ? sample : pixel;
    for (size_t f = 0; f < kFilters; ++f)
      filters_[channel_][f].learn(taps_, actual - guesses_[f], kRates[f]);
    const int64_t error = actual - guesses_[0];
    uint32_t& mean = errors_[channel_];
    mean += static_cast<uint32_t>(std::abs(error) / (wide_ ? 1 : 4)) - mean / 4;
    last_error_ =
        static_cast<uint32_t>(std::clamp<int64_t>(error >> (wide_ ? 6 : 5), -15, 15) + 16);
  }

  void filter() {
    for (size_t f = 0; f < kFilters; ++f) guesses_[f] = filters_[channel_][f].predict(taps_);
    const auto size = static_cast<uint32_t>(std::bit_width(errors_[channel_] / 4)) * 3 / 4;
    activity_ = channel_ * 8 + std::min(size, 7u);
  }

  void prepare_pixel(const Lane& lane, const SharedPast& past, const SampleLayout& layout) {
    const uint32_t s = layout.pixel(), r = layout.row(), history = lane.pos() - lane.begin();
    const auto back = [&](uint32_t d) -> int32_t {
      return d <= history ? past.bytes[lane.pos() - d] : 0;
    };
    // Compass points around the byte to come; p: the byte before it, in the same pixel.
    const int32_t w = back(s), n = back(r), nw = back(r + s), ne = back(r - s);
    const int32_t ww = back(2 * s), nn = back(2 * r);
    const int32_t p = back(1), p_w = back(1 + s), p_n = back(1 + r);
    base_ = w;
    taps_ = {n, nw, ne, ww, nn, p, p_w, p_n};
    const std::array<uint32_t, 12> more = {2 * r - s, 2 * r + s, r - 2 * s, 3 * s, 4 * s, 5 * s,
                                           6 * s,     r + s + 1, r - s + 1, 2,     s + 2, r + 2};
    for (size_t i = 0; i < more.size(); ++i) taps_[8 + i] = back(more[i]);
    for (int32_t& tap : taps_) tap = (tap - base_) * kScale;
    channel_ = lane.pos() % s;
    filter();
    filtered_ = true;
    const auto u = [](int32_t x) { return static_cast<uint32_t>(x); };
    guess_ = clip(base_ + ((guesses_[0] + guesses_[1] + kScale) >> 5));
    const uint32_t quarters = clip((base_ * kScale + guesses_[0] + 2) >> 2, 1023);
    const uint32_t slope = u(std::abs(w - nw) + std::abs(n - nw) + std::abs(n - ne));
    const auto steep = static_cast<uint32_t>(std::bit_width(slope));
    set(0, channel_, quarters, 0);
    set(1, channel_, guess_, last_error_);
    set(2, channel_, clip(w + n - nw), clip(p - p_n + 128) / 8);
    set(3, channel_, clip(n + p - p_n), activity_);
    set(4, channel_, clip(w + p - p_w), steep);
    set(5, channel_, u(n), u(p));
    set(6, channel_, clip(2 * n - nn), clip(2 * w - ww) / 4);
    set(7, channel_, u(w + ne) / 2, u(n + nw) / 4);
    set(8, channel_, u(n | nn << 8), u(w));
    set(9, channel_, u(n | ne << 8 | nw << 16), u(w));
  }

  // A sample begins: its prediction, of which the low byte comes first.
  void prepare_low(const Lane& lane, const SharedPast& past, const SampleLayout& layout) {
    const uint32_t history = lane.pos() - lane.begin(), channels = layout.pixel() / 2;
    const auto sample = [&](uint32_t d) -> int32_t {  // d samples before
      if (2 * d > history) return 0;
      const uint8_t* at = past.bytes.data() + lane.pos() - 2 * d;
      return static_cast<int16_t>(at[0] | at[1] << 8);
    };
    for (uint32_t i = 0; i < taps_.size(); ++i) taps_[i] = sample(i + 1);
    base_ = 0;
    channel_ = channels == 1 ? 0 : lane.pos() / 2 % 2;
    filter();
    const int32_t a = sample(channels), b = sample(2 * channels), c = sample(3 * channels);
    const auto limited = [](int64_t x) { return std::clamp<int64_t>(x, -32768, 32767); };
    const int64_t fast = limited(guesses_[0]), slow = limited(guesses_[1]);
    samples_ = {fast, slow, (fast + slow) >> 1, 2 * a - b, 3 * a - 3 * b + c};
    const uint32_t kind = 16 + channel_;
    for (size_t i = 0; i < samples_.size(); ++i)
      set(i, kind, static_cast<uint32_t>(samples_[i] & 255), activity_);
    guess_ = static_cast<uint32_t>(samples_[2] & 255);
    set(5, kind, guess_ >> 3, static_cast<uint32_t>(samples_[2] >> 8));
    set(6, kind, static_cast<uint32_t>(samples_[2] >> 2), 0);
    set_recent(lane, kind);
  }

  // The low byte is known: what high byte makes it a sample near the prediction?
  void prepare_high(const Lane& lane) {
    const auto low = static_cast<int64_t>(lane.byte_back(1));
    const uint32_t kind = 18 + channel_;
    for (size_t i = 0; i < samples_.size(); ++i) {
      const int64_t apart = samples_[i] - low + 128;
      set(i, kind, static_cast<uint32_t>(apart >> 8), static_cast<uint32_t>(apart & 255) / 16);
    }
    const int64_t apart = samples_[2] - low + 128;
    guess_ = static_cast<uint32_t>(apart >> 8) & 255;
    set(5, kind, guess_, static_cast<uint32_t>(apart & 255) / 64 + 4 * activity_);
    set(6, kind, static_cast<uint32_t>(samples_[2] >> 4), 0);
    set_recent(lane, kind);
    filtered_ = true;
  }

  void set_recent(const Lane& lane, uint32_t kind) {
    set(7, kind, lane.byte_back(2), kind >= 18 ? lane.byte_back(1) : 256);
    set(8, kind, lane.byte_back(2), lane.byte_back(4));
    set(9, kind, activity_, last_error_);
  }

  static uint32_t clip(int64_t x, int64_t top = 255) {
    return static_cast<uint32_t>(std::clamp<int64_t>(x, 0, top));
  }

  void set(size_t i, uint32_t kind, uint32_t a, uint32_t b) {
    contexts_[i] = hash_of(a, b, (static_cast<uint32_t>(i) << 8 | kind) * 0x3D4D51CBu + 2);
  }

  std::array<std::array<LinearFilter, kFilters>, 4> filters_{};  // (channels, filters)
  LinearFilter::Taps taps_{};
  std::array<int64_t, kFilters> guesses_{};  // relative to base_, of pixels in sixteenths
  std::array<int64_t, 5> samples_{};         // predictions of the sample
  std::array<uint32_t, 4> errors_{};         // four times the mean of the recent ones
  std::array<uint32_t, kContexts> contexts_{};
  int32_t base_ = 0;
  uint32_t channel_ = 0, guess_ = 0, activity_ = 0, last_error_ = 16;
  bool wide_ = false, filtered_ = false;
};

}  // namespace lmzip

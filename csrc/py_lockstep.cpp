// py_lockstep.cpp: lockstep.h and token_lockstep.h for Python.  Arrays are read and written where
// they are, without the GIL: one thread can code while another, or a device, computes.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "bindings.h"
#include "errors.h"
#include "lockstep.h"
#include "token_lockstep.h"

namespace py = pybind11;

namespace lmzip {
namespace {

static_assert(sizeof(Interval) == 8);  // rows of (lo, freq), uint32

// Records of 32-bit words (token_answers.h) as arrays of uint32.
template <typename Record>
Record* records(uint32_t* words) {
  return reinterpret_cast<Record*>(words);
}
template <typename Record>
const Record* records(const uint32_t* words) {
  return reinterpret_cast<const Record*>(words);
}

// (table bits, name of the profile), of each frame.
using Mixers = std::vector<std::pair<int, std::string>>;

std::vector<LockstepMixer> parse(const Mixers& mixers, size_t frames) {
  if (mixers.size() != frames) throw std::invalid_argument("a mixer for each frame is needed");
  std::vector<LockstepMixer> out;
  for (const auto& [table_bits, profile] : mixers) {
    if ((table_bits == 0) != (mixers[0].first == 0))
      throw std::invalid_argument("frames with a mixer and without one cannot be coded together");
    out.push_back({table_bits, mixer_profile(profile)});
  }
  return out;
}

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

// Throws std::invalid_argument for another shape.
void check_shape(const py::array& array, std::vector<size_t> shape, const char* what) {
  if (std::vector<size_t>(array.shape(), array.shape() + array.ndim()) == shape) return;
  std::string wanted;
  for (const size_t n : shape) wanted += (wanted.empty() ? "" : ", ") + std::to_string(n);
  throw std::invalid_argument(std::string(what) + " must have the shape (" + wanted + ")");
}

size_t steps_of(const py::array& array) {
  return array.ndim() >= 2 ? static_cast<size_t>(array.shape(1)) : 0;
}

std::span<const uint8_t> view(const py::buffer_info& info) {
  if (info.itemsize != 1 || info.ndim != 1 || info.strides[0] != 1)
    throw std::invalid_argument("expected contiguous bytes");
  return {static_cast<const uint8_t*>(info.ptr), static_cast<size_t>(info.size)};
}

py::list to_lists(const std::vector<Payloads>& frames) {
  py::list out;
  for (const Payloads& payloads : frames) {
    py::list list;
    for (const auto& p : payloads)
      list.append(py::bytes(reinterpret_cast<const char*>(p.data()), p.size()));
    out.append(list);
  }
  return out;
}

// What frames are decoded from, and to: kept alive, and where it is.
using EncodedFrames = std::vector<std::pair<std::vector<py::buffer>, size_t>>;

class DecodedFrames {
 public:
  explicit DecodedFrames(const EncodedFrames& frames) {
    for (const auto& [buffers, raw_size] : frames) {
      payloads_.emplace_back();
      for (const py::buffer& buffer : buffers) {
        kept_.push_back(buffer.request());
        payloads_.back().push_back(view(kept_.back()));
      }
      auto raw = py::reinterpret_steal<py::bytes>(
          PyBytes_FromStringAndSize(nullptr, static_cast<py::ssize_t>(raw_size)));
      if (!raw) throw py::error_already_set();
      raw_.push_back(raw);
    }
  }

  // As LockstepDecoder::Frame and TokenLockstepDecoder::Frame.
  template <typename Frame>
  std::vector<Frame> frames() const {
    std::vector<Frame> out;
    for (size_t i = 0; i < raw_.size(); ++i) {
      // Nobody else sees these objects before they are decoded, so they may still be written to.
      auto* data = reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(raw_[i].ptr()));
      Frame frame{};
      frame.payloads = payloads_[i];
      frame.raw = {data, static_cast<size_t>(PyBytes_GET_SIZE(raw_[i].ptr()))};
      out.push_back(frame);
    }
    return out;
  }

  py::bytes raw(size_t frame) const { return raw_.at(frame); }

 private:
  std::vector<py::buffer_info> kept_;
  std::vector<std::vector<std::span<const uint8_t>>> payloads_;
  std::vector<py::bytes> raw_;
};

class PyEncoder {
 public:
  PyEncoder(const std::vector<std::pair<py::buffer, size_t>>& frames, const Mixers& mixers,
            size_t threads) {
    const std::vector<LockstepMixer> parsed = parse(mixers, frames.size());
    std::vector<LockstepEncoder::Frame> views;
    for (const auto& [raw, lanes] : frames) {
      kept_.push_back(raw.request());
      views.push_back({view(kept_.back()), lanes, parsed[views.size()]});
    }
    with_mixer_ = !parsed.empty() && parsed[0].table_bits != 0;
    const py::gil_scoped_release release;
    coder_ = std::make_unique<LockstepEncoder>(views, threads);
  }

  void take_intervals(const Array<uint32_t>& intervals) {
    if (with_mixer_) throw std::invalid_argument("with a mixer, distances are needed");
    const size_t steps = steps_of(intervals);
    check_shape(intervals, {coder_->lanes(), steps, 2}, "intervals");
    const auto* data = reinterpret_cast<const Interval*>(intervals.data());
    const py::gil_scoped_release release;
    coder_->take_intervals(data, steps);
  }

  void take_distances(const Array<uint16_t>& distances) {
    if (!with_mixer_) throw std::invalid_argument("without a mixer, intervals are needed");
    const size_t steps = steps_of(distances);
    check_shape(distances, {coder_->lanes(), steps, 256}, "distances");
    const uint16_t* data = distances.data();
    const py::gil_scoped_release release;
    coder_->take_distances(data, steps);
  }

  py::list finish() { return to_lists(coder_->finish()); }

 private:
  std::vector<py::buffer_info> kept_;
  bool with_mixer_;
  std::unique_ptr<LockstepEncoder> coder_;
};

class PyDecoder {
 public:
  PyDecoder(const EncodedFrames& frames, const Mixers& mixers, size_t threads) : frames_(frames) {
    const std::vector<LockstepMixer> parsed = parse(mixers, frames.size());
    auto views = frames_.frames<LockstepDecoder::Frame>();
    for (size_t i = 0; i < views.size(); ++i) views[i].mixer = parsed[i];
    with_mixer_ = !parsed.empty() && parsed[0].table_bits != 0;
    const py::gil_scoped_release release;
    coder_ = std::make_unique<LockstepDecoder>(views, threads);
  }

  void slots(Array<uint32_t>& out) {
    check_shape(out, {coder_->lanes()}, "slots");
    uint32_t* data = out.mutable_data();
    const py::gil_scoped_release release;
    coder_->slots(data);
  }

  void take_intervals(const Array<uint8_t>& bytes, const Array<uint32_t>& intervals) {
    if (with_mixer_) throw std::invalid_argument("with a mixer, distances are needed");
    check_shape(bytes, {coder_->lanes()}, "bytes");
    check_shape(intervals, {coder_->lanes(), 2}, "intervals");
    const auto* data = reinterpret_cast<const Interval*>(intervals.data());
    const py::gil_scoped_release release;
    coder_->take_intervals(bytes.data(), data);
  }

  void take_distances(const Array<uint16_t>& distances, Array<uint8_t>& bytes) {
    if (!with_mixer_) throw std::invalid_argument("without a mixer, intervals are needed");
    check_shape(distances, {coder_->lanes(), 256}, "distances");
    check_shape(bytes, {coder_->lanes()}, "bytes");
    uint8_t* out = bytes.mutable_data();
    const py::gil_scoped_release release;
    coder_->take_distances(distances.data(), out);
  }

  size_t active() const { return coder_->active(); }

  py::bytes finish(size_t frame) {
    coder_->check(frame);
    return frames_.raw(frame);
  }

 private:
  DecodedFrames frames_;
  bool with_mixer_;
  std::unique_ptr<LockstepDecoder> coder_;
};

class PyTokenEncoder {
 public:
  PyTokenEncoder(std::shared_ptr<LlamaModel> model,
                 std::vector<std::pair<std::vector<uint32_t>, size_t>> frames, size_t threads)
      : model_(std::move(model)) {
    const py::gil_scoped_release release;
    std::vector<TokenLockstepEncoder::Frame> moved;
    for (auto& [symbols, lanes] : frames) moved.push_back({std::move(symbols), lanes});
    coder_ = std::make_unique<TokenLockstepEncoder>(*model_, std::move(moved), threads);
  }

  size_t lanes() const { return coder_->lanes(); }
  size_t steps() const { return coder_->steps(); }

  void ask(Array<uint32_t>& out) const {
    const size_t steps = steps_of(out);
    check_shape(out, {coder_->lanes(), steps, kQuestionWords}, "questions");
    auto* data = records<RowQuestion>(out.mutable_data());
    const py::gil_scoped_release release;
    coder_->ask(data, steps);
  }

  void take(const Array<uint32_t>& answers) {
    const size_t steps = steps_of(answers);
    check_shape(answers, {coder_->lanes(), steps, kAnswerWords}, "answers");
    const auto* data = records<RowAnswer>(answers.data());
    const py::gil_scoped_release release;
    coder_->take(data, steps);
  }

  py::list finish() {
    std::vector<Payloads> frames;
    {
      const py::gil_scoped_release release;
      frames = coder_->finish();
    }
    return to_lists(frames);
  }

 private:
  std::shared_ptr<LlamaModel> model_;
  std::unique_ptr<TokenLockstepEncoder> coder_;
};

class PyTokenDecoder {
 public:
  PyTokenDecoder(std::shared_ptr<LlamaModel> model, const EncodedFrames& frames, size_t threads)
      : model_(std::move(model)), frames_(frames) {
    const auto views = frames_.frames<TokenLockstepDecoder::Frame>();
    const py::gil_scoped_release release;
    coder_ = std::make_unique<TokenLockstepDecoder>(*model_, views, threads);
  }

  size_t lanes() const { return coder_->lanes(); }

  void ask(Array<uint32_t>& out) {
    check_shape(out, {coder_->lanes(), kQuestionWords}, "questions");
    auto* data = records<RowQuestion>(out.mutable_data());
    const py::gil_scoped_release release;
    coder_->ask(data);
  }

  size_t choose(const Array<uint32_t>& answers, Array<uint32_t>& slots) {
    check_shape(answers, {coder_->lanes(), kAnswerWords}, "answers");
    check_shape(slots, {coder_->lanes()}, "slots");
    const auto* data = records<RowAnswer>(answers.data());
    uint32_t* out = slots.mutable_data();
    const py::gil_scoped_release release;
    return coder_->choose(data, out);
  }

  void take(const Array<uint32_t>& found) {
    check_shape(found, {coder_->lanes(), kFoundWords}, "found");
    const auto* data = records<FoundToken>(found.data());
    const py::gil_scoped_release release;
    coder_->take(data);
  }

  size_t active() const { return coder_->active(); }

  py::bytes finish(size_t frame) {
    coder_->finish(frame);
    return frames_.raw(frame);
  }

 private:
  std::shared_ptr<LlamaModel> model_;
  DecodedFrames frames_;
  std::unique_ptr<TokenLockstepDecoder> coder_;
};

}  // namespace

void bind_lockstep(py::module_& m) {
  py::class_<PyEncoder>(m, "LockstepEncoder")
      .def(py::init<const std::vector<std::pair<py::buffer, size_t>>&, const Mixers&, size_t>(),
           py::arg("frames"), py::arg("mixers"), py::arg("threads"))
      .def("take_intervals", &PyEncoder::take_intervals, py::arg("intervals").noconvert())
      .def("take_distances", &PyEncoder::take_distances, py::arg("distances").noconvert())
      .def("finish", &PyEncoder::finish);
  py::class_<PyDecoder>(m, "LockstepDecoder")
      .def(py::init<const EncodedFrames&, const Mixers&, size_t>(), py::arg("frames"),
           py::arg("mixers"), py::arg("threads"))
      .def("slots", &PyDecoder::slots, py::arg("out").noconvert())
      .def("take_intervals", &PyDecoder::take_intervals, py::arg("bytes").noconvert(),
           py::arg("intervals").noconvert())
      .def("take_distances", &PyDecoder::take_distances, py::arg("distances").noconvert(),
           py::arg("bytes").noconvert())
      .def("active", &PyDecoder::active)
      .def("finish", &PyDecoder::finish, py::arg("frame"));
  py::class_<PyTokenEncoder>(m, "TokenLockstepEncoder")
      .def(py::init<std::shared_ptr<LlamaModel>,
                    std::vector<std::pair<std::vector<uint32_t>, size_t>>, size_t>(),
           py::arg("model"), py::arg("frames"), py::arg("threads"))
      .def_property_readonly("lanes", &PyTokenEncoder::lanes)
      .def_property_readonly("steps", &PyTokenEncoder::steps)
      .def("ask", &PyTokenEncoder::ask, py::arg("out").noconvert())
      .def("take", &PyTokenEncoder::take, py::arg("answers").noconvert())
      .def("finish", &PyTokenEncoder::finish);
  py::class_<PyTokenDecoder>(m, "TokenLockstepDecoder")
      .def(py::init<std::shared_ptr<LlamaModel>, const EncodedFrames&, size_t>(), py::arg("model"),
           py::arg("frames"), py::arg("threads"))
      .def_property_readonly("lanes", &PyTokenDecoder::lanes)
      .def("ask", &PyTokenDecoder::ask, py::arg("out").noconvert())
      .def("choose", &PyTokenDecoder::choose, py::arg("answers").noconvert(),
           py::arg("slots").noconvert())
      .def("take", &PyTokenDecoder::take, py::arg("found").noconvert())
      .def("active", &PyTokenDecoder::active)
      .def("finish", &PyTokenDecoder::finish, py::arg("frame"));
}

}  // namespace lmzip

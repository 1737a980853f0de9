// py_lockstep.cpp: lockstep.h for Python.  Arrays are read and written where they are, without the
// GIL: one thread can code while another, or a device, computes.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "bindings.h"
#include "errors.h"
#include "lockstep.h"

namespace py = pybind11;

namespace lmzip {
namespace {

static_assert(sizeof(Interval) == 8);  // rows of (lo, freq), uint32

constexpr std::pair<const char*, MixerProfile> kProfiles[] = {
    {"text", MixerProfile::kText},
    {"binary", MixerProfile::kBinary},
    {"strong", MixerProfile::kStrong},
};

LockstepParams make_params(int table_bits, const std::string& profile, size_t threads) {
  for (const auto& [name, value] : kProfiles) {
    if (profile == name) return {table_bits, value, threads};
  }
  throw std::invalid_argument("unknown mixer profile \"" + profile + "\"");
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

class PyEncoder {
 public:
  PyEncoder(const std::vector<std::pair<py::buffer, size_t>>& frames, int table_bits,
            const std::string& profile, size_t threads) {
    std::vector<LockstepEncoder::Frame> views;
    for (const auto& [raw, lanes] : frames) {
      kept_.push_back(raw.request());
      views.push_back({view(kept_.back()), lanes});
    }
    with_mixer_ = table_bits != 0;
    const LockstepParams params = make_params(table_bits, profile, threads);
    const py::gil_scoped_release release;
    coder_ = std::make_unique<LockstepEncoder>(views, params);
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

  py::list finish() {
    py::list frames;
    for (const auto& payloads : coder_->finish()) {
      py::list list;
      for (const auto& p : payloads)
        list.append(py::bytes(reinterpret_cast<const char*>(p.data()), p.size()));
      frames.append(list);
    }
    return frames;
  }

 private:
  std::vector<py::buffer_info> kept_;
  bool with_mixer_;
  std::unique_ptr<LockstepEncoder> coder_;
};

class PyDecoder {
 public:
  PyDecoder(const std::vector<std::pair<std::vector<py::buffer>, size_t>>& frames, int table_bits,
            const std::string& profile, size_t threads) {
    std::vector<std::vector<std::span<const uint8_t>>> payloads;
    std::vector<LockstepDecoder::Frame> views;
    for (const auto& [buffers, raw_size] : frames) {
      payloads.emplace_back();
      for (const py::buffer& buffer : buffers) {
        kept_.push_back(buffer.request());
        payloads.back().push_back(view(kept_.back()));
      }
      auto raw = py::reinterpret_steal<py::bytes>(
          PyBytes_FromStringAndSize(nullptr, static_cast<py::ssize_t>(raw_size)));
      if (!raw) throw py::error_already_set();
      raw_.push_back(raw);
      // Nobody else sees these objects before finish(), so they may still be written to.
      views.push_back({{}, {reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(raw.ptr())), raw_size}});
    }
    for (size_t i = 0; i < views.size(); ++i) views[i].payloads = payloads[i];
    with_mixer_ = table_bits != 0;
    const LockstepParams params = make_params(table_bits, profile, threads);
    const py::gil_scoped_release release;
    coder_ = std::make_unique<LockstepDecoder>(views, params);
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
    return raw_.at(frame);
  }

 private:
  std::vector<py::buffer_info> kept_;
  std::vector<py::bytes> raw_;
  bool with_mixer_;
  std::unique_ptr<LockstepDecoder> coder_;
};

}  // namespace

void bind_lockstep(py::module_& m) {
  py::class_<PyEncoder>(m, "LockstepEncoder")
      .def(py::init<const std::vector<std::pair<py::buffer, size_t>>&, int, const std::string&,
                    size_t>(),
           py::arg("frames"), py::arg("table_bits"), py::arg("profile"), py::arg("threads"))
      .def("take_intervals", &PyEncoder::take_intervals, py::arg("intervals").noconvert())
      .def("take_distances", &PyEncoder::take_distances, py::arg("distances").noconvert())
      .def("finish", &PyEncoder::finish);
  py::class_<PyDecoder>(m, "LockstepDecoder")
      .def(py::init<const std::vector<std::pair<std::vector<py::buffer>, size_t>>&, int,
                    const std::string&, size_t>(),
           py::arg("frames"), py::arg("table_bits"), py::arg("profile"), py::arg("threads"))
      .def("slots", &PyDecoder::slots, py::arg("out").noconvert())
      .def("take_intervals", &PyDecoder::take_intervals, py::arg("bytes").noconvert(),
           py::arg("intervals").noconvert())
      .def("take_distances", &PyDecoder::take_distances, py::arg("distances").noconvert(),
           py::arg("bytes").noconvert())
      .def("active", &PyDecoder::active)
      .def("finish", &PyDecoder::finish, py::arg("frame"));
}

}  // namespace lmzip

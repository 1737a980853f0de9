// py_mixer.cpp: the mixer for Python: whole frames, and one step of all lanes at a time for
// predictors that live in Python.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "bindings.h"
#include "errors.h"
#include "mixer.h"
#include "x86_targets.h"

namespace py = pybind11;

namespace lmzip {
namespace {

using WeightArray = py::array_t<uint32_t, py::array::c_style>;

constexpr std::pair<const char*, MixerProfile> kProfiles[] = {
    {"text", MixerProfile::kText},     {"binary", MixerProfile::kBinary},
    {"strong", MixerProfile::kStrong}, {"sample", MixerProfile::kSample},
    {"code", MixerProfile::kCode},
};

MixerParams make_params(const std::string& profile, int log2_memory, bool with_network) {
  return {log2_memory, mixer_profile(profile), with_network};
}

// (rows, 256), or nothing without a network.
const uint32_t* check_weights(const std::optional<WeightArray>& weights, size_t rows) {
  if (!weights) return nullptr;
  if (weights->ndim() != 2 || static_cast<size_t>(weights->shape(0)) != rows ||
      weights->shape(1) != 256) {
    throw DistributionError("weights must be a uint32 array of the shape (" + std::to_string(rows) +
                            ", 256)");
  }
  return weights->data();
}

std::span<const uint8_t> view(const py::buffer_info& info) {
  if (info.ndim != 1 || info.itemsize != 1 || info.strides[0] != 1) {
    throw std::invalid_argument("expected contiguous bytes");
  }
  return {static_cast<const uint8_t*>(info.ptr), static_cast<size_t>(info.size)};
}

py::bytes to_bytes(std::span<const uint8_t> data) {
  return py::bytes(reinterpret_cast<const char*>(data.data()), data.size());
}

py::list to_list(const std::vector<std::vector<uint8_t>>& payloads) {
  py::list list;
  for (const auto& payload : payloads) list.append(to_bytes(payload));
  return list;
}

py::list mixer_encode(const py::buffer& raw, int lanes, const std::string& profile, int log2_memory,
                      const std::optional<WeightArray>& weights) {
  const py::buffer_info info = raw.request();
  const std::span<const uint8_t> bytes = view(info);
  const uint32_t* rows = check_weights(weights, bytes.size());
  const MixerParams params = make_params(profile, log2_memory, rows != nullptr);
  std::vector<std::vector<uint8_t>> payloads;
  {
    const py::gil_scoped_release release;
    payloads = encode_frame_mixer(bytes, lanes, params, rows);
  }
  return to_list(payloads);
}

py::bytes mixer_decode(const std::vector<std::string>& payloads, size_t raw_size,
                       const std::string& profile, int log2_memory,
                       const std::optional<WeightArray>& weights) {
  const uint32_t* rows = check_weights(weights, raw_size);
  const MixerParams params = make_params(profile, log2_memory, rows != nullptr);
  std::vector<std::span<const uint8_t>> spans;
  for (const std::string& payload : payloads) {
    spans.emplace_back(reinterpret_cast<const uint8_t*>(payload.data()), payload.size());
  }
  std::vector<uint8_t> raw(raw_size);
  {
    const py::gil_scoped_release release;
    if (!decode_frame_mixer(spans, params, raw, rows)) {
      throw CorruptError("a payload is not the encoding of any " + std::to_string(raw_size) +
                         " bytes; the file is damaged");
    }
  }
  return to_bytes(raw);
}

// Which lanes still have a byte: the first ones, as only the last pieces are shorter.
class Lockstep {
 public:
  Lockstep(size_t raw_size, int lanes) : raw_size_(raw_size), lanes_(lanes), step_(0) {}
  size_t active() const {
    const size_t stride = lane_stride(raw_size_, lanes_);
    if (step_ >= stride || step_ >= raw_size_) return 0;
    return std::min(static_cast<size_t>(lanes_), (raw_size_ - step_ - 1) / stride + 1);
  }
  void advance() { ++step_; }

 private:
  size_t raw_size_;
  int lanes_;
  size_t step_;
};

class StepEncoder {
 public:
  StepEncoder(size_t raw_size, int lanes, const std::string& profile, int log2_memory,
              bool with_network)
      : mixer_(make_params(profile, log2_memory, with_network), raw_size, lanes),
        with_network_(with_network),
        lockstep_(raw_size, lanes),
        encoders_(static_cast<size_t>(lanes)) {}

  size_t active() const { return lockstep_.active(); }

  void encode(const py::buffer& symbols, const std::optional<WeightArray>& weights) {
    const size_t n = active();
    const py::buffer_info info = symbols.request();
    const std::span<const uint8_t> bytes = view(info);
    if (bytes.size() != n) throw DistributionError("one byte is needed for each active lane");
    const uint32_t* rows = check_weights(weights, n);
    if ((rows != nullptr) != with_network_) {
      throw DistributionError("weights are needed with a network, and only then");
    }
    const py::gil_scoped_release release;
    for (size_t i = 0; i < n; ++i) {
      mixer_.encode_byte(static_cast<int>(i), bytes[i], rows == nullptr ? rows : rows + 256 * i,
                         encoders_[i]);
    }
    lockstep_.advance();
  }

  py::list finish() {
    py::list list;
    for (RangeEncoder& encoder : encoders_) list.append(to_bytes(encoder.finish()));
    return list;
  }

  uint64_t state_hash() const { return mixer_.state_hash(); }

 private:
  Mixer mixer_;
  bool with_network_;
  Lockstep lockstep_;
  std::vector<RangeEncoder> encoders_;
};

class StepDecoder {
 public:
  StepDecoder(std::vector<std::string> payloads, size_t raw_size, const std::string& profile,
              int log2_memory, bool with_network)
      : payloads_(std::move(payloads)),
        mixer_(make_params(profile, log2_memory, with_network), raw_size,
               static_cast<int>(payloads_.size())),
        with_network_(with_network),
        lockstep_(raw_size, static_cast<int>(payloads_.size())) {
    for (const std::string& payload : payloads_) {
      decoders_.emplace_back(
          std::span(reinterpret_cast<const uint8_t*>(payload.data()), payload.size()));
    }
  }

  size_t active() const { return lockstep_.active(); }

  py::bytes decode(const std::optional<WeightArray>& weights) {
    const size_t n = active();
    const uint32_t* rows = check_weights(weights, n);
    if ((rows != nullptr) != with_network_) {
      throw DistributionError("weights are needed with a network, and only then");
    }
    std::vector<uint8_t> bytes(n);
    {
      const py::gil_scoped_release release;
      for (size_t i = 0; i < n; ++i) {
        bytes[i] = mixer_.decode_byte(static_cast<int>(i), rows == nullptr ? rows : rows + 256 * i,
                                      decoders_[i]);
      }
      lockstep_.advance();
    }
    return to_bytes(bytes);
  }

  // Whether every lane stands exactly at the end of its payload.
  bool exact() const {
    return std::all_of(decoders_.begin(), decoders_.end(),
                       [](const RangeDecoder& d) { return d.end() == StreamEnd::kExact; });
  }

  uint64_t state_hash() const { return mixer_.state_hash(); }

 private:
  std::vector<std::string> payloads_;
  Mixer mixer_;
  bool with_network_;
  Lockstep lockstep_;
  std::vector<RangeDecoder> decoders_;
};

py::bytes transformed(const py::buffer& raw, void (*transform)(std::span<uint8_t>)) {
  const py::buffer_info info = raw.request();
  const std::span<const uint8_t> bytes = view(info);
  std::vector<uint8_t> copy(bytes.begin(), bytes.end());
  transform(copy);
  return to_bytes(copy);
}

}  // namespace

MixerProfile mixer_profile(const std::string& name) {
  for (const auto& [known, profile] : kProfiles) {
    if (name == known) return profile;
  }
  throw std::invalid_argument("unknown mixer profile \"" + name +
                              "\"; expected text, binary, strong, sample or code");
}

void bind_mixer(py::module_& m) {
  m.def(
      "x86_to_absolute", [](const py::buffer& raw) { return transformed(raw, &x86_to_absolute); },
      py::arg("raw"));
  m.def(
      "x86_to_relative", [](const py::buffer& raw) { return transformed(raw, &x86_to_relative); },
      py::arg("raw"));
  m.def("mixer_encode", &mixer_encode, py::arg("raw"), py::arg("lanes"), py::arg("profile"),
        py::arg("log2_memory"), py::arg("weights") = std::nullopt);
  m.def("mixer_decode", &mixer_decode, py::arg("payloads"), py::arg("raw_size"), py::arg("profile"),
        py::arg("log2_memory"), py::arg("weights") = std::nullopt);
  py::class_<StepEncoder>(m, "MixerEncoder")
      .def(py::init<size_t, int, std::string, int, bool>(), py::arg("raw_size"), py::arg("lanes"),
           py::arg("profile"), py::arg("log2_memory"), py::arg("network"))
      .def("active", &StepEncoder::active)
      .def("encode", &StepEncoder::encode, py::arg("symbols"), py::arg("weights") = std::nullopt)
      .def("finish", &StepEncoder::finish)
      .def("state_hash", &StepEncoder::state_hash);
  py::class_<StepDecoder>(m, "MixerDecoder")
      .def(py::init<std::vector<std::string>, size_t, std::string, int, bool>(),
           py::arg("payloads"), py::arg("raw_size"), py::arg("profile"), py::arg("log2_memory"),
           py::arg("network"))
      .def("active", &StepDecoder::active)
      .def("decode", &StepDecoder::decode, py::arg("weights") = std::nullopt)
      .def("exact", &StepDecoder::exact)
      .def("state_hash", &StepDecoder::state_hash);
}

}  // namespace lmzip

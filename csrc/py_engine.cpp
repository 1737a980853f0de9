// py_engine.cpp: the exact engine and the frame codec for Python.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "bindings.h"
#include "cpu.h"
#include "engine.h"
#include "errors.h"
#include "frame_codec.h"
#include "py_model.h"

namespace py = pybind11;

namespace lmzip {
namespace {

using ByteArray = py::array_t<uint8_t, py::array::c_style>;

// As ExactModel.architecture.to_json() gives it.
Architecture read_architecture(const py::dict& d) {
  const auto get_size = field<size_t>;
  Architecture a{get_size(d, "d_model"),
                 get_size(d, "n_layers"),
                 get_size(d, "n_heads"),
                 get_size(d, "n_kv_heads"),
                 get_size(d, "head_dim"),
                 get_size(d, "d_ff"),
                 field<std::vector<size_t>>(d, "windows"),
                 {}};
  for (const py::dict& t : field<std::vector<py::dict>>(d, "ngrams")) {
    a.ngrams.push_back({get_size(t, "order"), get_size(t, "log2_slots"), get_size(t, "offset"),
                        get_size(t, "width")});
  }
  return a;
}

// The network alone, for tests and measurements.
class Engine {
 public:
  Engine(std::shared_ptr<ExactModel> model, size_t lanes, size_t threads)
      : model_(std::move(model)),
        threads_(std::clamp<size_t>(threads, 1, kMaxThreads)),
        cache_(*model_, lanes),
        histories_(lanes) {}

  // (lanes) -> (lanes, 256)
  py::array_t<int32_t> step(const ByteArray& inputs) {
    if (inputs.ndim() != 1) throw std::invalid_argument("step: one input for each lane");
    return feed(inputs.data(), 1, inputs.shape(0)).reshape({inputs.shape(0), py::ssize_t{kLogits}});
  }

  // (lanes, positions) -> (lanes, positions, 256)
  py::array_t<int32_t> prefill(const ByteArray& inputs) {
    if (inputs.ndim() != 2) throw std::invalid_argument("prefill: inputs are (lanes, positions)");
    return feed(inputs.data(), static_cast<size_t>(inputs.shape(1)), inputs.shape(0));
  }

  // position, history (lanes, 4), keys and values per layer (lanes, slots, kv heads, head_dim), as
  // in lmzip.reference.State.
  py::tuple state() {
    py::list keys, values;
    for (size_t layer = 0; layer < model_->arch().n_layers; ++layer) {
      keys.append(cached(layer, true));
      values.append(cached(layer, false));
    }
    py::array_t<int64_t> history({cache_.lanes(), size_t{4}});
    auto h = history.mutable_unchecked<2>();
    for (py::ssize_t lane = 0; lane < h.shape(0); ++lane) {
      for (py::ssize_t i = 0; i < 4; ++i)
        h(lane, i) = histories_[static_cast<size_t>(lane)] >> (8 * i) & 255;
    }
    return py::make_tuple(position_, history, keys, values);
  }

 private:
  py::array_t<int32_t> feed(const uint8_t* inputs, size_t count, py::ssize_t lanes) {
    if (static_cast<size_t>(lanes) != cache_.lanes())
      throw std::invalid_argument("inputs for " + std::to_string(lanes) +
                                  " lanes; the engine has " + std::to_string(cache_.lanes()));
    py::array_t<int32_t> out({cache_.lanes(), count, kLogits});
    int32_t* logits = out.mutable_data();
    {
      const py::gil_scoped_release release;
      const size_t groups = std::clamp<size_t>(threads_, 1, std::max<size_t>(cache_.lanes(), 1));
      Job job(groups, check_signals);
      run_threads(job, [&](size_t group) {
        const size_t begin = cache_.lanes() * group / groups;
        const size_t end = cache_.lanes() * (group + 1) / groups;
        if (count == 1) {
          step_lanes(inputs, begin, end, logits);
        } else {
          for (size_t lane = begin; lane < end; ++lane)
            prefill_lane(job, group, inputs, count, lane, logits);
        }
      });
    }
    position_ += static_cast<uint32_t>(count);
    return out;
  }

  Row row(size_t lane, uint32_t position, uint8_t input) {
    histories_[lane] = push_input(histories_[lane], input);
    return {static_cast<uint32_t>(lane), position, histories_[lane]};
  }

  void step_lanes(const uint8_t* inputs, size_t begin, size_t end, int32_t* logits) {
    Workspace workspace(*model_, kTileRows);
    Row rows[kTileRows];
    for (size_t first = begin; first < end; first += kTileRows) {
      const size_t count = std::min(kTileRows, end - first);
      for (size_t i = 0; i < count; ++i) rows[i] = row(first + i, position_, inputs[first + i]);
      forward(*model_, {rows, count}, cache_, workspace, logits + first * kLogits);
    }
  }

  void prefill_lane(Job& job, size_t group, const uint8_t* inputs, size_t count, size_t lane,
                    int32_t* logits) {
    Workspace workspace(*model_, kTileRows);
    Row rows[kTileRows];
    for (size_t first = 0; first < count; first += kTileRows) {
      job.check(group);
      const size_t size = std::min(kTileRows, count - first);
      for (size_t i = 0; i < size; ++i) {
        rows[i] = row(lane, position_ + static_cast<uint32_t>(first + i),
                      inputs[lane * count + first + i]);
      }
      forward(*model_, {rows, size}, cache_, workspace, logits + (lane * count + first) * kLogits);
    }
  }

  // A layer's keys or values in order of position and of channel.
  py::array_t<int8_t> cached(size_t layer, bool keys) {
    const Architecture& a = model_->arch();
    const size_t window = a.windows[layer], slots = std::min<size_t>(position_, window);
    py::array_t<int8_t> out({cache_.lanes(), slots, a.n_kv_heads, a.head_dim});
    int8_t* to = out.mutable_data();
    for (size_t lane = 0; lane < cache_.lanes(); ++lane) {
      for (size_t t = position_ - slots; t < position_; ++t) {
        for (size_t g = 0; g < a.n_kv_heads; ++g) {
          for (size_t c = 0; c < a.head_dim; ++c)
            *to++ = keys ? cache_.key(lane, layer, g, t % window, c)
                         : cache_.value(lane, layer, g, t % window, c);
        }
      }
    }
    return out;
  }

  std::shared_ptr<ExactModel> model_;
  size_t threads_;
  Cache cache_;
  std::vector<uint32_t> histories_;
  uint32_t position_ = 0;
};

FrameParams frame_params(const std::shared_ptr<ExactModel>& model, int method, int table_bits,
                         size_t threads, const std::string& profile) {
  if (method < 1 || method > 3)
    throw std::invalid_argument("method " + std::to_string(method) + " is not 1, 2 or 3");
  return {static_cast<Method>(method), model.get(), table_bits, mixer_profile(profile), threads};
}

using ModelOrNone = std::optional<std::shared_ptr<ExactModel>>;

std::span<const uint8_t> view(const py::buffer_info& info) {
  if (info.itemsize != 1 || info.ndim != 1 || info.strides[0] != 1)
    throw std::invalid_argument("expected contiguous bytes");
  return {static_cast<const uint8_t*>(info.ptr), static_cast<size_t>(info.size)};
}

py::list py_encode_frame(const ModelOrNone& model, const py::buffer& data, size_t lanes, int method,
                         int table_bits, size_t threads, const std::string& profile,
                         const py::object& interrupt) {
  const py::buffer_info info = data.request();
  const std::span<const uint8_t> raw = view(info);
  const FrameParams params =
      frame_params(model.value_or(nullptr), method, table_bits, threads, profile);
  Payloads payloads;
  {
    const py::gil_scoped_release release;
    payloads = encode_frame(params, raw, lanes, interrupt_by(interrupt));
  }
  py::list list;
  for (const auto& p : payloads)
    list.append(py::bytes(reinterpret_cast<const char*>(p.data()), p.size()));
  return list;
}

py::bytes py_decode_frame(const ModelOrNone& model, const std::vector<py::buffer>& payloads,
                          size_t raw_size, int method, int table_bits, size_t threads,
                          const std::string& profile, const py::object& interrupt) {
  std::vector<py::buffer_info> infos;
  std::vector<std::span<const uint8_t>> views;
  for (const py::buffer& payload : payloads) {
    infos.push_back(payload.request());
    views.push_back(view(infos.back()));
  }
  const FrameParams params =
      frame_params(model.value_or(nullptr), method, table_bits, threads, profile);
  auto out = py::reinterpret_steal<py::bytes>(
      PyBytes_FromStringAndSize(nullptr, static_cast<py::ssize_t>(raw_size)));
  if (!out) throw py::error_already_set();
  // Nobody else has seen this object yet, so it may still be written to.
  const std::span raw(reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(out.ptr())), raw_size);
  {
    const py::gil_scoped_release release;
    decode_frame(params, views, raw, interrupt_by(interrupt));
  }
  return out;
}

size_t py_frame_memory(const ModelOrNone& model, size_t raw_size, size_t lanes, int method,
                       int table_bits) {
  return frame_memory(frame_params(model.value_or(nullptr), method, table_bits, 1, "text"),
                      raw_size, lanes);
}

size_t py_most_encoding_threads(int method) {
  return most_encoding_threads(static_cast<Method>(method));
}
size_t py_most_decoding_threads(const ModelOrNone& model, int method, size_t lanes) {
  return most_decoding_threads(
      frame_params(model.value_or(nullptr), method, kMixerMinLog2Memory, 1, "text"), lanes);
}

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<ExactModel, std::shared_ptr<ExactModel>>(m, "ExactModel")
      .def(py::init([](const py::dict& tensors, const py::dict& architecture) {
             return std::make_shared<ExactModel>(read_architecture(architecture),
                                                 ArrayTensors(tensors).views());
           }),
           py::arg("tensors"), py::arg("architecture"))
      .def_property_readonly(
          "kernel", [](const ExactModel& self) { return std::string(kernel_name(self.kernel())); })
      .def_property_readonly("memory", &ExactModel::memory);

  py::class_<Engine>(m, "Engine")
      .def(py::init<std::shared_ptr<ExactModel>, size_t, size_t>(), py::arg("model"),
           py::arg("lanes"), py::arg("threads") = 1)
      .def("step", &Engine::step, py::arg("inputs").noconvert())
      .def("prefill", &Engine::prefill, py::arg("inputs").noconvert())
      .def("state", &Engine::state);

  m.def("encode_frame", &py_encode_frame, py::arg("model").none(true), py::arg("data"),
        py::arg("lanes"), py::arg("method"), py::arg("table_bits"), py::arg("threads"),
        py::arg("profile") = "text", py::arg("interrupt") = py::none());
  m.def("decode_frame", &py_decode_frame, py::arg("model").none(true), py::arg("payloads"),
        py::arg("raw_size"), py::arg("method"), py::arg("table_bits"), py::arg("threads"),
        py::arg("profile") = "text", py::arg("interrupt") = py::none());
  m.def("most_encoding_threads", &py_most_encoding_threads, py::arg("method"));
  m.def("most_decoding_threads", &py_most_decoding_threads, py::arg("model").none(true),
        py::arg("method"), py::arg("lanes"));
  m.def("frame_memory", &py_frame_memory, py::arg("model").none(true), py::arg("raw_size"),
        py::arg("lanes"), py::arg("method"), py::arg("table_bits"));
}

}  // namespace lmzip

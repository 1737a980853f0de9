// py_llama.cpp: the exact engine of pretrained models and the token codec for Python.
#include <algorithm>
#include <memory>
#include <string>

#include "bindings.h"
#include "cpu.h"
#include "errors.h"
#include "llama_engine.h"
#include "py_model.h"
#include "token_codec.h"

namespace py = pybind11;

namespace lmzip {
namespace {

using TokenArray = py::array_t<uint32_t, py::array::c_style>;

// As LlamaArchitecture.to_native() gives it.
LlamaArchitecture read_architecture(const py::dict& d) {
  const auto wide = field<std::vector<std::string>>(d, "wide");
  const auto is_wide = [&](const char* name) {
    return std::find(wide.begin(), wide.end(), name) != wide.end();
  };
  return {field<size_t>(d, "vocabulary"),
          field<size_t>(d, "d_model"),
          field<size_t>(d, "n_layers"),
          field<size_t>(d, "n_heads"),
          field<size_t>(d, "n_kv_heads"),
          field<size_t>(d, "head_dim"),
          field<size_t>(d, "d_ff"),
          field<std::vector<size_t>>(d, "windows"),
          field<std::vector<size_t>>(d, "sinks"),
          field<int>(d, "residual_bits"),
          field<int64_t>(d, "epsilon_units"),
          field<int64_t>(d, "head_epsilon_units"),
          field<bool>(d, "qk_norm"),
          field<bool>(d, "tied"),
          field<bool>(d, "post_norms"),
          field<std::vector<bool>>(d, "local"),
          is_wide("qkv"),
          is_wide("out"),
          is_wide("gate_up"),
          is_wide("down"),
          is_wide("head"),
          field<uint32_t>(d, "start"),
          field<uint32_t>(d, "escape")};
}

// The network alone, for tests and measurements.
class LlamaEngine {
 public:
  LlamaEngine(std::shared_ptr<LlamaModel> model, size_t lanes, size_t positions)
      : model_(std::move(model)), cache_(*model_, lanes, positions), positions_(positions) {}

  // (lanes, positions) -> (lanes, positions, vocabulary); a step of all lanes at a time where
  // by_step is set, else lane by lane.
  py::array_t<int32_t> feed(const TokenArray& tokens, bool by_step) {
    const size_t vocabulary = model_->arch().vocabulary;
    if (tokens.ndim() != 2 || static_cast<size_t>(tokens.shape(0)) != cache_.lanes())
      throw std::invalid_argument("tokens are (lanes, positions)");
    const auto count = static_cast<size_t>(tokens.shape(1));
    const uint32_t* ids = tokens.data();
    if (std::any_of(ids, ids + tokens.size(), [=](uint32_t id) { return id >= vocabulary; }))
      throw std::invalid_argument("a token is outside the vocabulary");
    if (position_ + count > positions_) throw std::invalid_argument("too many positions");
    py::array_t<int32_t> out({cache_.lanes(), count, vocabulary});
    int32_t* logits = out.mutable_data();
    {
      const py::gil_scoped_release release;
      const FloatMode mode;
      if (by_step) {
        for (size_t t = 0; t < count; ++t) step(ids, count, t, logits);
      } else {
        for (size_t lane = 0; lane < cache_.lanes(); ++lane) prefill(ids, count, lane, logits);
      }
    }
    position_ += count;
    return out;
  }

  // position, then per layer keys and values (lanes, positions, kv heads, head_dim), their scales
  // (lanes, positions, kv heads); of the positions that are still seen, in order.
  py::tuple state() {
    py::list keys, values, key_scales, value_scales;
    for (size_t i = 0; i < model_->arch().n_layers; ++i) {
      const std::vector<uint32_t> seen = positions_seen(i);
      keys.append(cached(i, seen, LlamaCache::key));
      values.append(cached(i, seen, LlamaCache::value));
      key_scales.append(scales(i, seen, &LlamaHeadCache::key_scales));
      value_scales.append(scales(i, seen, &LlamaHeadCache::value_scales));
    }
    return py::make_tuple(position_, keys, values, key_scales, value_scales);
  }

 private:
  LlamaRow row(const uint32_t* ids, size_t count, size_t lane, size_t t) const {
    return {static_cast<uint32_t>(lane), static_cast<uint32_t>(position_ + t),
            ids[lane * count + t]};
  }

  void step(const uint32_t* ids, size_t count, size_t t, int32_t* logits) {
    const size_t vocabulary = model_->arch().vocabulary;
    AlignedArray<int32_t> out(std::min(kLlamaRows, cache_.lanes()) * vocabulary);
    std::vector<LlamaRow> rows;
    for (size_t first = 0; first < cache_.lanes(); first += rows.size()) {
      rows.clear();
      for (size_t lane = first; lane < std::min(first + kLlamaRows, cache_.lanes()); ++lane)
        rows.push_back(row(ids, count, lane, t));
      llama_forward(*model_, rows, cache_, workspace_, out.data());
      for (size_t i = 0; i < rows.size(); ++i) {
        std::copy_n(out.data() + i * vocabulary, vocabulary,
                    logits + ((first + i) * count + t) * vocabulary);
      }
    }
  }

  void prefill(const uint32_t* ids, size_t count, size_t lane, int32_t* logits) {
    std::vector<LlamaRow> rows;
    for (size_t first = 0; first < count; first += rows.size()) {
      rows.clear();
      for (size_t t = first; t < std::min(first + kLlamaRows, count); ++t)
        rows.push_back(row(ids, count, lane, t));
      llama_forward(*model_, rows, cache_, workspace_,
                    logits + (lane * count + first) * model_->arch().vocabulary);
    }
  }

  std::vector<uint32_t> positions_seen(size_t layer) const {
    const LlamaLayer& l = model_->layers()[layer];
    std::vector<uint32_t> out;
    for (size_t t = 0; t < position_; ++t) {
      if (t < l.sinks || t + l.window >= position_) out.push_back(static_cast<uint32_t>(t));
    }
    return out;
  }

  template <typename Read>
  py::array_t<int8_t> cached(size_t layer, const std::vector<uint32_t>& seen, Read read) {
    const LlamaArchitecture& a = model_->arch();
    py::array_t<int8_t> out({cache_.lanes(), seen.size(), a.n_kv_heads, a.head_dim});
    int8_t* to = out.mutable_data();
    for (size_t lane = 0; lane < cache_.lanes(); ++lane) {
      for (const uint32_t t : seen) {
        for (size_t g = 0; g < a.n_kv_heads; ++g) {
          for (size_t c = 0; c < a.head_dim; ++c)
            *to++ = read(cache_.head(lane, layer, g), a.head_dim, cache_.slot(layer, t), c);
        }
      }
    }
    return out;
  }

  py::array_t<float> scales(size_t layer, const std::vector<uint32_t>& seen,
                            float* LlamaHeadCache::* which) {
    const size_t heads = model_->arch().n_kv_heads;
    py::array_t<float> out({cache_.lanes(), seen.size(), heads});
    float* to = out.mutable_data();
    for (size_t lane = 0; lane < cache_.lanes(); ++lane) {
      for (const uint32_t t : seen) {
        for (size_t g = 0; g < heads; ++g)
          *to++ = (cache_.head(lane, layer, g).*which)[cache_.slot(layer, t)];
      }
    }
    return out;
  }

  std::shared_ptr<LlamaModel> model_;
  LlamaCache cache_;
  LlamaWorkspace workspace_{*model_, kLlamaRows};
  size_t positions_, position_ = 0;
};

py::list py_encode_tokens(const LlamaModel& model, const std::vector<uint32_t>& symbols,
                          size_t lanes, size_t threads, const py::object& interrupt) {
  Payloads payloads;
  {
    const py::gil_scoped_release release;
    payloads = encode_tokens(model, symbols, lanes, threads, interrupt_by(interrupt));
  }
  py::list list;
  for (const auto& p : payloads)
    list.append(py::bytes(reinterpret_cast<const char*>(p.data()), p.size()));
  return list;
}

py::bytes py_decode_tokens(const LlamaModel& model, const std::vector<py::bytes>& payloads,
                           size_t raw_size, size_t threads, const py::object& interrupt,
                           size_t team_size) {
  std::vector<std::span<const uint8_t>> views;
  for (const py::bytes& payload : payloads) {
    const std::string_view view = payload;
    views.emplace_back(reinterpret_cast<const uint8_t*>(view.data()), view.size());
  }
  auto out = py::reinterpret_steal<py::bytes>(
      PyBytes_FromStringAndSize(nullptr, static_cast<py::ssize_t>(raw_size)));
  if (!out) throw py::error_already_set();
  // Nobody else has seen this object yet, so it may still be written to.
  const std::span raw(reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(out.ptr())), raw_size);
  {
    const py::gil_scoped_release release;
    const TokenTeams teams = team_size == 0 ? token_teams(views.size(), threads, model.kernel())
                                            : TokenTeams{threads / team_size, team_size};
    decode_tokens(model, views, raw, teams, interrupt_by(interrupt));
  }
  return out;
}

}  // namespace

void bind_llama(py::module_& m) {
  py::class_<LlamaModel, std::shared_ptr<LlamaModel>>(m, "LlamaModel")
      .def(py::init([](const py::dict& tensors, const py::dict& architecture) {
             return std::make_shared<LlamaModel>(read_architecture(architecture),
                                                 ArrayTensors(tensors).views());
           }),
           py::arg("tensors"), py::arg("architecture"))
      .def_property_readonly(
          "kernel", [](const LlamaModel& self) { return std::string(kernel_name(self.kernel())); })
      .def_property_readonly("memory", &LlamaModel::memory);

  py::class_<LlamaEngine>(m, "LlamaEngine")
      .def(py::init<std::shared_ptr<LlamaModel>, size_t, size_t>(), py::arg("model"),
           py::arg("lanes"), py::arg("positions"))
      .def("feed", &LlamaEngine::feed, py::arg("tokens").noconvert(), py::arg("by_step") = false)
      .def("state", &LlamaEngine::state);

  m.def("encode_tokens", &py_encode_tokens, py::arg("model"), py::arg("symbols"), py::arg("lanes"),
        py::arg("threads"), py::arg("interrupt") = py::none());
  m.def("decode_tokens", &py_decode_tokens, py::arg("model"), py::arg("payloads"),
        py::arg("raw_size"), py::arg("threads"), py::arg("interrupt") = py::none(),
        py::arg("team_size") = 0);
  m.def(
      "most_token_threads",
      [](const LlamaModel& model, size_t lanes) {
        return most_token_threads(lanes, model.kernel());
      },
      py::arg("model"), py::arg("lanes"));
  m.def("token_memory", &token_memory, py::arg("model"), py::arg("raw_size"), py::arg("lanes"));
}

}  // namespace lmzip

// py_coder.cpp: kernels, range coder and row coder for Python.  The callers in python/lmzip check
// types and shapes with messages for users; the checks here only keep memory safe.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <mutex>
#include <string>

#include "bindings.h"
#include "cpu.h"
#include "errors.h"
#include "exp2_table.h"
#include "row_coder.h"

namespace py = pybind11;

namespace lmzip {
namespace {

using SymbolArray = py::array_t<int64_t, py::array::c_style>;
using IntervalArray = py::array_t<uint32_t, py::array::c_style>;

struct NamedKind {
  const char* name;
  RowKind kind;
};
constexpr NamedKind kKinds[] = {
    {"float32", RowKind::kFloat32},   {"float16", RowKind::kFloat16},
    {"bfloat16", RowKind::kBfloat16}, {"float64", RowKind::kFloat64},
    {"logits", RowKind::kLogits},     {"weights", RowKind::kWeights},
};

RowKind kind_by_name(const std::string& name) {
  for (const NamedKind& named : kKinds) {
    if (name == named.name) return named.kind;
  }
  throw std::invalid_argument("unknown kind of row: " + name);
}

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

// rows: (steps, lanes, symbols), the last axis contiguous.
RowBlock row_block(const std::string& kind_name, const py::array& rows) {
  const RowKind kind = kind_by_name(kind_name);
  const auto size = static_cast<py::ssize_t>(element_size(kind));
  require(rows.ndim() == 3, "rows must have the shape (steps, lanes, symbols)");
  require(rows.itemsize() == size, "rows have another element size than their kind");
  require(rows.shape(2) >= 1 && rows.shape(2) <= py::ssize_t{kMaxSymbols},
          "an alphabet has 1 to 2^20 symbols");
  require(rows.size() == 0 || rows.shape(2) == 1 || rows.strides(2) == size,
          "the numbers of a row must be contiguous");
  require(reinterpret_cast<uintptr_t>(rows.data()) % static_cast<uintptr_t>(size) == 0 &&
              rows.strides(0) % size == 0 && rows.strides(1) % size == 0,
          "rows must be aligned");
  return {kind,
          rows.data(),
          rows.strides(0),
          rows.strides(1),
          static_cast<size_t>(rows.shape(0)),
          static_cast<size_t>(rows.shape(1)),
          static_cast<size_t>(rows.shape(2))};
}

void check_lane_map(const std::vector<size_t>& lane_map, size_t lanes, size_t block_lanes) {
  std::vector<bool> seen(lanes, false);
  require(lane_map.size() == block_lanes,
          "the lane map needs one entry for each lane of the block");
  for (const size_t lane : lane_map) {
    require(lane < lanes && !seen[lane], "the lane map must name different lanes that exist");
    seen[lane] = true;
  }
}

py::bytes to_bytes(const std::vector<uint8_t>& data) {
  return py::bytes(reinterpret_cast<const char*>(data.data()), data.size());
}

void check_interval(uint64_t lo, uint64_t freq, int bits) {
  require(bits >= 1 && bits <= kMaxFreqBits, "bits must be 1 to 32");
  require(freq > 0 && lo + freq <= uint64_t{1} << bits && lo + freq > lo,
          "an interval needs 0 < freq and lo + freq <= 2^bits");
}

void check_bit(uint64_t p1, int bits) {
  require(bits >= 1 && bits <= kMaxFreqBits, "bits must be 1 to 32");
  require(p1 > 0 && p1 < uint64_t{1} << bits, "a bit needs 0 < p1 < 2^bits");
}

// Decodes from bytes that it keeps alive.
struct PyRangeDecoder {
  explicit PyRangeDecoder(py::bytes source) : data(std::move(source)), decoder(view(data)) {}

  static std::span<const uint8_t> view(const py::bytes& bytes) {
    const std::string_view text = bytes;
    return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
  }

  py::bytes data;
  RangeDecoder decoder;
};

const char* end_name(StreamEnd end) {
  switch (end) {
    case StreamEnd::kExact:
      return "exact";
    case StreamEnd::kShort:
      return "short";
    case StreamEnd::kLong:
      return "long";
    default:
      return "altered";
  }
}

// Many encoders, used together.  The lock makes calls from several threads take turns; what comes
// after finish() is refused, as it would begin a message that nobody takes.
class LaneEncoder {
 public:
  explicit LaneEncoder(size_t lanes) : coders_(lanes) {}

  void encode_rows(const std::string& kind, const py::array& rows, const SymbolArray& symbols,
                   const std::vector<size_t>& lane_map, int threads) {
    const RowBlock block = row_block(kind, rows);
    check_lane_map(lane_map, coders_.size(), block.lanes);
    require(static_cast<size_t>(symbols.size()) == block.steps * block.lanes,
            "one symbol for each row");
    const int64_t* data = symbols.data();
    py::gil_scoped_release release;
    const std::lock_guard lock(mutex_);
    require_open();
    lmzip::encode_rows(coders_, lane_map, block, data, threads);
  }

  // intervals: (steps, lanes, 2), lo and freq of total 2^30
  void encode_intervals(const IntervalArray& intervals, const std::vector<size_t>& lane_map) {
    require(intervals.ndim() == 3 && intervals.shape(2) == 2, "intervals: (steps, lanes, 2)");
    check_lane_map(lane_map, coders_.size(), static_cast<size_t>(intervals.shape(1)));
    const auto steps = static_cast<size_t>(intervals.shape(0));
    std::vector<Interval> copy(steps * lane_map.size());
    const uint32_t* data = intervals.data();
    py::gil_scoped_release release;
    for (size_t i = 0; i < copy.size(); ++i) {
      check_interval(data[2 * i], data[2 * i + 1], kFreqBits);
      copy[i] = {data[2 * i], data[2 * i + 1]};
    }
    const std::lock_guard lock(mutex_);
    require_open();
    lmzip::encode_intervals(coders_, lane_map, copy.data(), steps);
  }

  std::vector<py::bytes> finish() {
    std::vector<py::bytes> payloads;
    const std::lock_guard lock(mutex_);
    require_open();
    finished_ = true;
    for (RangeEncoder& coder : coders_) payloads.push_back(to_bytes(coder.finish()));
    return payloads;
  }

 private:
  void require_open() const { require(!finished_, "this encoder has been finished"); }

  std::mutex mutex_;
  std::vector<RangeEncoder> coders_;
  bool finished_ = false;
};

class LaneDecoder {
 public:
  explicit LaneDecoder(std::vector<py::bytes> payloads) : payloads_(std::move(payloads)) {
    for (const py::bytes& payload : payloads_) coders_.emplace_back(PyRangeDecoder::view(payload));
  }

  // Returns the symbols, (steps, lanes).
  py::array_t<int64_t> decode_rows(const std::string& kind, const py::array& rows,
                                   const std::vector<size_t>& lane_map, int threads) {
    const RowBlock block = row_block(kind, rows);
    check_lane_map(lane_map, coders_.size(), block.lanes);
    py::array_t<int64_t> symbols({block.steps, block.lanes});
    int64_t* out = symbols.mutable_data();
    {
      py::gil_scoped_release release;
      const std::lock_guard lock(mutex_);
      lmzip::decode_rows(coders_, lane_map, block, threads, out);
    }
    return symbols;
  }

  // For each lane: exact, short, long or altered.
  std::vector<std::string> ends() {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> names;
    for (const RangeDecoder& coder : coders_) names.emplace_back(end_name(coder.end()));
    return names;
  }

 private:
  std::mutex mutex_;
  std::vector<py::bytes> payloads_;
  std::vector<RangeDecoder> coders_;
};

// (rows, n) -> (rows, n + 1): all values C_i
py::array_t<uint32_t> cumulative(const std::string& kind, const py::array& rows) {
  const RowBlock block = row_block(kind, rows);
  py::array_t<uint32_t> out({block.steps, block.lanes, block.symbols + 1});
  // Refuses bad rows, with their places.
  const std::vector<int64_t> zeros(block.steps * block.lanes, 0);
  std::vector<Interval> unused(zeros.size());
  row_intervals(block, zeros.data(), 1, unused.data());
  Distribution distribution;
  for (size_t row = 0; row < zeros.size(); ++row) {
    distribution.assign(block.kind, block.row(row / block.lanes, row % block.lanes), block.symbols);
    distribution.cumulative(out.mutable_data() + row * (block.symbols + 1));
  }
  return out;
}

void bind_range_coder(py::module_& m) {
  py::class_<RangeEncoder>(m, "RangeEncoder")
      .def(py::init<>())
      .def(
          "encode",
          [](RangeEncoder& self, uint32_t lo, uint32_t freq, int bits) {
            check_interval(lo, freq, bits);
            self.encode(lo, freq, bits);
          },
          py::arg("lo"), py::arg("freq"), py::arg("bits"))
      .def(
          "encode_bit",
          [](RangeEncoder& self, bool bit, uint32_t p1, int bits) {
            check_bit(p1, bits);
            self.encode_bit(bit, p1, bits);
          },
          py::arg("bit"), py::arg("p1"), py::arg("bits"))
      .def("finish", [](RangeEncoder& self) { return to_bytes(self.finish()); });

  py::class_<PyRangeDecoder>(m, "RangeDecoder")
      .def(py::init<py::bytes>(), py::arg("data"))
      .def(
          "peek",
          [](const PyRangeDecoder& self, int bits) {
            require(bits >= 1 && bits <= kMaxFreqBits, "bits must be 1 to 32");
            return self.decoder.peek(bits);
          },
          py::arg("bits"))
      .def(
          "consume",
          [](PyRangeDecoder& self, uint32_t lo, uint32_t freq, int bits) {
            check_interval(lo, freq, bits);
            const uint32_t slot = self.decoder.peek(bits);
            require(slot >= lo && slot - lo < freq, "the interval must contain peek(bits)");
            self.decoder.consume(lo, freq, bits);
          },
          py::arg("lo"), py::arg("freq"), py::arg("bits"))
      .def(
          "decode_bit",
          [](PyRangeDecoder& self, uint32_t p1, int bits) {
            check_bit(p1, bits);
            return self.decoder.decode_bit(p1, bits);
          },
          py::arg("p1"), py::arg("bits"))
      .def("truncated", [](const PyRangeDecoder& self) { return self.decoder.truncated(); })
      .def("end", [](const PyRangeDecoder& self) { return end_name(self.decoder.end()); });
}

}  // namespace

void bind_coder(py::module_& m) {
  m.def("kernels", [] {
    std::vector<std::string> names;
    for (const Kernel kernel : usable_kernels()) names.emplace_back(kernel_name(kernel));
    return names;
  });
  m.def("active_kernel", [] { return std::string(kernel_name(active_kernel())); });
  m.def(
      "set_active_kernel", [](const std::string& name) { set_active_kernel(name); },
      py::arg("name"));
  m.def("exp2_table", [] { return py::array_t<uint32_t>(1024, kExp2Table); });
  m.def("cumulative", &cumulative, py::arg("kind"), py::arg("rows"));
  bind_range_coder(m);

  py::class_<LaneEncoder>(m, "LaneEncoder")
      .def(py::init<size_t>(), py::arg("lanes"))
      .def("encode_rows", &LaneEncoder::encode_rows, py::arg("kind"), py::arg("rows"),
           py::arg("symbols").noconvert(), py::arg("lane_map"), py::arg("threads"))
      .def("encode_intervals", &LaneEncoder::encode_intervals, py::arg("intervals").noconvert(),
           py::arg("lane_map"))
      .def("finish", &LaneEncoder::finish);

  py::class_<LaneDecoder>(m, "LaneDecoder")
      .def(py::init<std::vector<py::bytes>>(), py::arg("payloads"))
      .def("decode_rows", &LaneDecoder::decode_rows, py::arg("kind"), py::arg("rows"),
           py::arg("lane_map"), py::arg("threads"))
      .def("ends", &LaneDecoder::ends);
}

}  // namespace lmzip

// A squared first stage under gates of single pixels for Python.

#include "frame_bindings.h"

#include <pybind11/stl.h>

#include <cmath>
#include <string>
#include <vector>

#include "arguments.h"
#include "frame.h"

namespace py = pybind11;

namespace lpn {
namespace {

// Entries of one stage of gates in the table: width, units below, addresses of core, bias and head, whether
// every image has a bias of its own.
constexpr size_t gate_entries = 6;

std::vector<FrameGates> gates_of(const std::vector<int64_t>& table) {
  if (table.size() % gate_entries)
    throw std::invalid_argument("gates must hold 6 entries per stage, got " + std::to_string(table.size()));
  std::vector<FrameGates> gates;
  for (size_t at = 0; at < table.size(); at += gate_entries) {
    const int64_t* entry = table.data() + at;
    require_at_least(1, entry[0], "width");
    FrameGates stage{};
    stage.width = entry[0];
    stage.below = entry[1];
    stage.core = required<const float>(entry[2], "core", 1);
    stage.bias = optional<const float>(entry[3], "bias");
    stage.head = optional<const float>(entry[4], "head");
    stage.bias_step = entry[5] ? stage.width : 0;
    gates.push_back(stage);
  }
  return gates;
}

void value_prox(Address x,
                Address filters,
                Address head,
                const std::vector<int64_t>& gates,
                int64_t units,
                int64_t images,
                int64_t channels,
                int64_t height,
                int64_t width,
                int64_t kernel,
                float beta,
                float alpha,
                Address psi,
                Address f,
                int threads) {
  require_at_least(1, units, "units");
  require_at_least(0, images, "images");
  require_at_least(1, channels, "channels");
  require_at_least(1, height, "height");
  require_at_least(1, width, "width");
  require_at_least(1, kernel, "kernel");
  require_at_least(1, threads, "threads");
  if (!(beta > 0.0f) || std::isinf(beta))
    throw std::invalid_argument("beta must be positive and finite, got " + std::to_string(beta));
  Frame op{};
  op.filters = required<const float>(filters, "filters", 1);
  op.head = optional<const float>(head, "head");
  op.units = units;
  op.channels = channels;
  op.kernel = kernel;
  op.height = height;
  op.width = width;
  op.beta = beta;
  const FrameNetwork network(op, gates_of(gates), alpha);
  if (images == 0) return;
  network.value_prox(required<const float>(x, "x", 1), optional<double>(psi, "psi"),
                     required<float>(f, "f", 1), images, threads);
}

}  // namespace

void define_frame(py::module_& module) {
  using py::arg;
  module.def("frame_value_prox", &value_prox, py::call_guard<py::gil_scoped_release>(), arg("x"),
             arg("filters"), arg("head"), arg("gates"), arg("units"), arg("images"), arg("channels"),
             arg("height"), arg("width"), arg("kernel"), arg("beta"), arg("alpha"), arg("psi"), arg("f"),
             arg("threads"),
             "psi (float64, may be 0) and f = grad psi; gates hold width, units below, addresses of core, "
             "bias, head "
             "and whether each image has a bias of its own, stage by stage.");
}

}  // namespace lpn

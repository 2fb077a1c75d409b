// A squared first stage under gates of single pixels for Python.

#include "frame_bindings.h"

#include <cmath>
#include <string>

#include "arguments.h"
#include "frame.h"

namespace py = pybind11;

namespace lpn {
namespace {

// What describes a network and its input, in the order of the arguments.
struct Problem {
  const float* P;
  const int64_t* table;  // of the gates, as of a dense network (mlp.h), in P
  int64_t stages;
  int64_t filters_at;   // of K in P
  const float* biases;  // [images or 1, gates of all stages]
  FrameShape shape;
  bool competing;  // the units of the last stage, for one output
  float beta;
  float alpha;

  Problem(Address P,
          Address table,
          int64_t stages,
          int64_t filters_at,
          Address biases,
          int64_t images,
          int64_t channels,
          int64_t height,
          int64_t width,
          int64_t units,
          int64_t kernel,
          bool competing,
          float beta,
          float alpha,
          int threads)
      : P(required<const float>(P, "P", 1)),
        table(required<const int64_t>(table, "table", 1)),
        stages(stages),
        filters_at(filters_at),
        biases(required<const float>(biases, "biases", images * stages)),
        shape{images, channels, height, width, units, kernel},
        competing(competing),
        beta(beta),
        alpha(alpha) {
    require_at_least(0, stages, "stages");
    require_at_least(0, filters_at, "filters_at");
    require_at_least(0, images, "images");
    require_at_least(1, channels, "channels");
    require_at_least(1, height, "height");
    require_at_least(1, width, "width");
    require_at_least(1, units, "units");
    require_at_least(1, kernel, "kernel");
    require_at_least(1, threads, "threads");
    if (!(beta > 0.0f) || std::isinf(beta))
      throw std::invalid_argument("beta must be positive and finite, got " + std::to_string(beta));
  }

  // run(network); every image has biases of its own or all share one row.
  template <class Run>
  void with_network(bool shared, Run run) const {
    const Network gates(P, table, shape.units, stages, beta, 0.0f, competing);
    run(FrameNetwork(shape, P + filters_at, gates, biases, shared ? 0 : gates.units(), alpha));
  }
};

void value_prox(Address x,
                Address P,
                Address table,
                int64_t stages,
                int64_t filters_at,
                Address biases,
                bool shared,
                int64_t images,
                int64_t channels,
                int64_t height,
                int64_t width,
                int64_t units,
                int64_t kernel,
                bool competing,
                float beta,
                float alpha,
                Address psi,
                Address f,
                int threads) {
  const Problem problem(P, table, stages, filters_at, biases, images, channels, height, width, units, kernel,
                        competing, beta, alpha, threads);
  const auto* from = required<const float>(x, "x", images);
  auto* value = optional<double>(psi, "psi");
  auto* to = required<float>(f, "f", images);
  problem.with_network(shared,
                       [&](const FrameNetwork& network) { network.value_prox(from, value, to, threads); });
}

void vjp(Address x,
         Address P,
         Address table,
         int64_t stages,
         int64_t filters_at,
         Address biases,
         bool shared,
         int64_t images,
         int64_t channels,
         int64_t height,
         int64_t width,
         int64_t units,
         int64_t kernel,
         bool competing,
         float beta,
         float alpha,
         Address p,
         Address v,
         Address gx,
         Address gP,
         int64_t numel,
         Address bias_gradient,
         int threads) {
  const Problem problem(P, table, stages, filters_at, biases, images, channels, height, width, units, kernel,
                        competing, beta, alpha, threads);
  FrameVjp io{};
  io.x = required<const float>(x, "x", images);
  io.p = optional<const float>(p, "p");
  io.v = optional<const float>(v, "v");
  io.gx = required<float>(gx, "gx", images);
  io.gP = optional<float>(gP, "gP");
  io.numel = numel;
  io.filters_at = filters_at;
  io.bias_gradient = required<float>(bias_gradient, "bias_gradient", gP ? images * stages : 0);
  const int64_t filters = units * channels * kernel * kernel;
  if (gP && filters_at + filters > numel)
    throw std::invalid_argument("filters_at must leave room for " + std::to_string(filters) +
                                " values in numel = " + std::to_string(numel) + ", got " +
                                std::to_string(filters_at));
  problem.with_network(shared, [&](const FrameNetwork& network) { network.vjp(io, threads); });
}

}  // namespace

void define_frame(py::module_& module) {
  using py::arg;
  using unlocked = py::call_guard<py::gil_scoped_release>;
  module.def(
      "frame_value_prox", &value_prox, unlocked(), arg("x"), arg("P"), arg("table"), arg("stages"),
      arg("filters_at"), arg("biases"), arg("shared"), arg("images"), arg("channels"), arg("height"),
      arg("width"), arg("units"), arg("kernel"), arg("competing"), arg("beta"), arg("alpha"), arg("psi"),
      arg("f"), arg("threads"),
      "psi (float64, may be 0) and f = grad psi; table: the gates as a dense network of the energies.");
  module.def(
      "frame_vjp", &vjp, unlocked(), arg("x"), arg("P"), arg("table"), arg("stages"), arg("filters_at"),
      arg("biases"), arg("shared"), arg("images"), arg("channels"), arg("height"), arg("width"), arg("units"),
      arg("kernel"), arg("competing"), arg("beta"), arg("alpha"), arg("p"), arg("v"), arg("gx"), arg("gP"),
      arg("numel"), arg("bias_gradient"), arg("threads"),
      "gx = H v + p f, and unless gP is 0 the gradient of sum p psi + <v, f> in P, where biases count as "
      "the sum over images of bias_gradient [images, gates]; p or v may be 0.");
}

}  // namespace lpn

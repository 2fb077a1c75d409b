// A squared first stage under gates of single pixels for Python.

#include "frame_bindings.h"

#include <cmath>
#include <string>

#include "arguments.h"
#include "frame.h"

namespace py = pybind11;

namespace lpn {
namespace {

// A network and the sizes of its input. Memory that it names must stay while it is used.
class FrameProblem {
 public:
  FrameProblem(Address P,
               Address table,  // where the gates are in P, as for a dense network (mlp.h)
               int64_t stages,
               int64_t filters_at,  // where K begins in P
               Address biases,      // [images or 1, gates of all stages]
               bool shared,         // whether all images share one row of biases
               int64_t images,
               int64_t channels,
               int64_t height,
               int64_t width,
               int64_t units,
               int64_t kernel,
               bool competing,  // whether the units of the last stage compete
               float beta,
               float alpha,
               Address rows,     // of a mirrored border (frame_kernels.h), as the next three; 0: zeros
               Address columns,  //
               Address row_weights,
               Address column_weights)
      : P_(required<const float>(P, "P", 1)),
        table_(required<const int64_t>(table, "table", 1)),
        stages_(stages),
        filters_at_(filters_at),
        biases_(required<const float>(biases, "biases", images * stages)),
        shared_(shared),
        shape_{images, channels, height, width, units, kernel},
        competing_(competing),
        beta_(beta),
        alpha_(alpha),
        mirror_{optional<const int64_t>(rows, "rows"), required<const int64_t>(columns, "columns", rows != 0),
                required<const float>(row_weights, "row_weights", rows != 0),
                required<const float>(column_weights, "column_weights", rows != 0)} {
    require_at_least(0, stages, "stages");
    require_at_least(0, filters_at, "filters_at");
    require_at_least(0, images, "images");
    require_at_least(1, channels, "channels");
    require_at_least(1, height, "height");
    require_at_least(1, width, "width");
    require_at_least(1, units, "units");
    require_at_least(1, kernel, "kernel");
    if (!(beta > 0.0f) || std::isinf(beta))
      throw std::invalid_argument("beta must be positive and finite, got " + std::to_string(beta));
  }

  void value_prox(Address x, Address psi, Address f, int threads) const {
    const auto* from = required<const float>(x, "x", shape_.images);
    auto* value = optional<double>(psi, "psi");
    auto* to = required<float>(f, "f", shape_.images);
    with_network(threads, [=](const FrameNetwork& network) { network.value_prox(from, value, to, threads); });
  }

  void vjp(Address x,
           Address p,
           Address v,
           Address gx,
           Address gP,
           int64_t numel,
           Address bias_gradient,
           int threads) const {
    FrameVjp io{};
    io.x = required<const float>(x, "x", shape_.images);
    io.p = optional<const float>(p, "p");
    io.v = optional<const float>(v, "v");
    io.gx = required<float>(gx, "gx", shape_.images);
    io.gP = optional<float>(gP, "gP");
    io.numel = numel;
    io.filters_at = filters_at_;
    io.bias_gradient = required<float>(bias_gradient, "bias_gradient", gP ? shape_.images * stages_ : 0);
    const int64_t filters = shape_.units * shape_.channels * shape_.kernel * shape_.kernel;
    if (gP && filters_at_ + filters > numel)
      throw std::invalid_argument("filters_at must leave room for " + std::to_string(filters) +
                                  " values in numel = " + std::to_string(numel) + ", got " +
                                  std::to_string(filters_at_));
    with_network(threads, [&](const FrameNetwork& network) { network.vjp(io, threads); });
  }

 private:
  // run(network)
  template <class Run>
  void with_network(int threads, Run run) const {
    require_at_least(1, threads, "threads");
    const Network gates(P_, table_, shape_.units, stages_, beta_, 0.0f, competing_);
    run(FrameNetwork(shape_, P_ + filters_at_, gates, biases_, shared_ ? 0 : gates.units(), alpha_, mirror_));
  }

  const float* P_;
  const int64_t* table_;
  int64_t stages_;
  int64_t filters_at_;
  const float* biases_;
  bool shared_;
  FrameShape shape_;
  bool competing_;
  float beta_;
  float alpha_;
  Mirror mirror_;
};

}  // namespace

void define_frame(py::module_& module) {
  using py::arg;
  using unlocked = py::call_guard<py::gil_scoped_release>;
  py::class_<FrameProblem>(module, "Frame",
                           "A squared first stage under gates of single pixels, and the sizes of its input; "
                           "table: the gates as a dense network of the energies.")
      .def(py::init<Address, Address, int64_t, int64_t, Address, bool, int64_t, int64_t, int64_t, int64_t,
                    int64_t, int64_t, bool, float, float, Address, Address, Address, Address>(),
           arg("P"), arg("table"), arg("stages"), arg("filters_at"), arg("biases"), arg("shared"),
           arg("images"), arg("channels"), arg("height"), arg("width"), arg("units"), arg("kernel"),
           arg("competing"), arg("beta"), arg("alpha"), arg("rows") = 0, arg("columns") = 0,
           arg("row_weights") = 0, arg("column_weights") = 0)
      .def("value_prox", &FrameProblem::value_prox, unlocked(), arg("x"), arg("psi"), arg("f"),
           arg("threads"), "psi (float64, may be 0) and f = grad psi.")
      .def(
          "vjp", &FrameProblem::vjp, unlocked(), arg("x"), arg("p"), arg("v"), arg("gx"), arg("gP"),
          arg("numel"), arg("bias_gradient"), arg("threads"),
          "gx = H v + p f, and unless gP is 0 the gradient of sum p psi + <v, f> in P, where biases count as "
          "the sum over images of bias_gradient [images, gates]; p or v may be 0.");
}

}  // namespace lpn

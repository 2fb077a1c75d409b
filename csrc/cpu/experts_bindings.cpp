// Experts that compete in contexts for Python: the two passes over positions.

#include "experts_bindings.h"

#include <string>

#include "arguments.h"
#include "experts.h"

namespace py = pybind11;

namespace lpn {
namespace {

// A network and the sizes of its input. Memory that it names must stay while it is used.
class ExpertProblem {
 public:
  ExpertProblem(Address P,
                Address table,       // where the experts are in P, as a dense network of the energies (mlp.h)
                int64_t filters_at,  // where K begins in P
                Address filters,  // with a spacing K as [units, channels spacing^2, shorter sides]; 0: in P
                Address biases,   // [images or 1, experts]
                Address odds,     // [images or 1, contexts, experts]
                int64_t contexts,
                bool shared,  // by all images: biases and odds
                int64_t images,
                int64_t channels,
                int64_t height,
                int64_t width,
                int64_t units,
                int64_t kernel,
                int64_t spacing,  // pixels from one position to the next; above 1 for mirrored borders
                float alpha,
                Address rows,     // of a mirrored border (frame_kernels.h), as the next three; 0: zeros
                Address columns,  //
                Address row_weights,
                Address column_weights)
      : filters_at_(filters_at),
        shape_(
            checked({images, channels, height, width, units, kernel, spacing}, contexts, filters_at, rows)),
        network_(required<const float>(P, "P", 1),
                 required<const int64_t>(table, "table", 1),
                 units,
                 1,
                 1.0f,
                 0.0f,
                 true),
        experts_(
            shape_,
            filters ? required<const float>(filters, "filters", 1)
                    : required<const float>(P, "P", 1) + filters_at,
            network_,
            required<const float>(biases, "biases", images),
            required<const float>(odds, "odds", images),
            contexts,
            shared,
            alpha,
            {optional<const int64_t>(rows, "rows"), required<const int64_t>(columns, "columns", rows != 0),
             required<const float>(row_weights, "row_weights", rows != 0),
             required<const float>(column_weights, "column_weights", rows != 0)}) {}

  int64_t kept_size(bool along_v) const { return experts_.kept_size(along_v); }

  void first(Address x,
             Address v,
             Address sums,
             Address logs,
             Address changes,
             Address kept,
             Address totals,
             int threads) const {
    require_at_least(1, threads, "threads");
    ExpertsFirst io{};
    io.x = required<const float>(x, "x", shape_.images);
    io.v = optional<const float>(v, "v");
    io.sums = required<float>(sums, "sums", shape_.images);
    io.logs = required<float>(logs, "logs", shape_.images);
    io.changes = required<float>(changes, "changes", v ? shape_.images : 0);
    io.kept = optional<float>(kept, "kept");
    io.totals = required<double>(totals, "totals", shape_.images);
    experts_.first(io, threads);
  }

  void second(Address x,
              Address v,
              Address p,
              Address slopes,
              Address changes,
              Address kept,
              Address out,
              Address gP,
              int64_t numel,
              Address bias_gradient,
              Address odds_gradient,
              int threads) const {
    require_at_least(1, threads, "threads");
    ExpertsSecond io{};
    io.x = required<const float>(x, "x", shape_.images);
    io.v = optional<const float>(v, "v");
    io.p = optional<const float>(p, "p");
    io.slopes = required<const float>(slopes, "slopes", v || !changes ? shape_.images : 0);
    io.changes = required<const float>(changes, "changes", v || p || gP ? shape_.images : 0);
    io.kept = optional<float>(kept, "kept");
    io.out = required<float>(out, "out", shape_.images);
    io.gP = optional<float>(gP, "gP");
    io.numel = numel;
    io.filters_at = filters_at_;
    io.bias_gradient = required<float>(bias_gradient, "bias_gradient", gP ? shape_.images : 0);
    io.odds_gradient = required<float>(odds_gradient, "odds_gradient", gP ? shape_.images : 0);
    const int64_t taps = shape_.units * shape_.channels * shape_.kernel * shape_.kernel;
    if (gP && filters_at_ + taps > numel)
      throw std::invalid_argument("filters_at must leave room for " + std::to_string(taps) +
                                  " values in numel = " + std::to_string(numel) + ", got " +
                                  std::to_string(filters_at_));
    if (shape_.images && changes && !v && !p)
      throw std::invalid_argument("v or p must be an address where changes is, got neither");
    experts_.second(io, threads);
  }

 private:
  static FrameShape checked(const FrameShape& shape, int64_t contexts, int64_t filters_at, Address rows) {
    require_at_least(0, filters_at, "filters_at");
    require_at_least(1, contexts, "contexts");
    require_at_least(0, shape.images, "images");
    require_at_least(1, shape.channels, "channels");
    require_at_least(1, shape.height, "height");
    require_at_least(1, shape.width, "width");
    require_at_least(1, shape.units, "units");
    require_at_least(1, shape.kernel, "kernel");
    require_at_least(1, shape.spacing, "spacing");
    if (shape.kernel % shape.spacing || (shape.spacing > 1 && !rows))
      throw std::invalid_argument("spacing must be 1, or divide kernel and have a mirrored border, got " +
                                  std::to_string(shape.spacing) + " for a kernel of " +
                                  std::to_string(shape.kernel));
    return shape;
  }

  int64_t filters_at_;
  FrameShape shape_;
  Network network_;
  ExpertNetwork experts_;
};

void compete_at(Address y,
                Address dy,
                Address p,
                int64_t contexts,
                int64_t height,
                int64_t width,
                Address bias,
                float sharpness,
                Address rows,
                Address columns,
                Address slopes,
                Address changes,
                Address zeta,
                Address dzeta,
                int threads) {
  require_at_least(1, contexts, "contexts");
  require_at_least(1, height, "height");
  require_at_least(1, width, "width");
  require_at_least(1, threads, "threads");
  compete({contexts, height, width, required<const float>(bias, "bias", 1), sharpness,
           required<const float>(rows, "rows", 1), required<const float>(columns, "columns", 1),
           required<const float>(y, "y", 1), optional<const float>(dy, "dy"), optional<const float>(p, "p"),
           required<float>(slopes, "slopes", 1), required<float>(changes, "changes", dy || p),
           optional<float>(zeta, "zeta"), required<float>(dzeta, "dzeta", dy != 0)},
          threads);
}

void average_maps_at(Address from,
                     Address to,
                     int64_t maps,
                     int64_t height,
                     int64_t width,
                     Address taps,
                     int64_t side,
                     Address rows_before,
                     Address columns_before,
                     Address rows_after,
                     Address columns_after,
                     int threads) {
  require_at_least(0, maps, "maps");
  require_at_least(1, height, "height");
  require_at_least(1, width, "width");
  require_at_least(1, threads, "threads");
  if (side < 1 || side % 2 == 0)
    throw std::invalid_argument("side must be odd and at least 1, got " + std::to_string(side));
  const Average op{required<const float>(taps, "taps", 1),
                   side,
                   height,
                   width,
                   optional<const float>(rows_before, "rows_before"),
                   required<const float>(columns_before, "columns_before", rows_before != 0),
                   optional<const float>(rows_after, "rows_after"),
                   required<const float>(columns_after, "columns_after", rows_after != 0)};
  average_maps(op, required<const float>(from, "from", maps), required<float>(to, "to", maps), maps, threads);
}

}  // namespace

void define_experts(py::module_& module) {
  using py::arg;
  using unlocked = py::call_guard<py::gil_scoped_release>;
  py::class_<ExpertProblem>(
      module, "Experts",
      "Experts of single pixels that compete in contexts, and the sizes of their input; "
      "table: the experts as a dense network of the energies.")
      .def(py::init<Address, Address, int64_t, Address, Address, Address, int64_t, bool, int64_t, int64_t,
                    int64_t, int64_t, int64_t, int64_t, int64_t, float, Address, Address, Address, Address>(),
           arg("P"), arg("table"), arg("filters_at"), arg("filters"), arg("biases"), arg("odds"),
           arg("contexts"), arg("shared"), arg("images"), arg("channels"), arg("height"), arg("width"),
           arg("units"), arg("kernel"), arg("spacing"), arg("alpha"), arg("rows") = 0, arg("columns") = 0,
           arg("row_weights") = 0, arg("column_weights") = 0)
      .def("kept_size", &ExpertProblem::kept_size, arg("along_v"),
           "Floats that an image leaves between the passes.")
      .def("first", &ExpertProblem::first, unlocked(), arg("x"), arg("v"), arg("sums"), arg("logs"),
           arg("changes"), arg("kept"), arg("totals"), arg("threads"),
           "L, log L, along v dl, and per image the sums of w max u, w mean du, w h . z_1; v, changes, kept "
           "may be "
           "0.")
      .def("second", &ExpertProblem::second, unlocked(), arg("x"), arg("v"), arg("p"), arg("slopes"),
           arg("changes"), arg("kept"), arg("out"), arg("gP"), arg("numel"), arg("bias_gradient"),
           arg("odds_gradient"), arg("threads"),
           "out = f where changes is 0, else H v + p f, and unless gP is 0 the gradients in P; v or p may be "
           "0.");
  module.def(
      "compete", &compete_at, unlocked(), arg("y"), arg("dy"), arg("p"), arg("contexts"), arg("height"),
      arg("width"), arg("bias"), arg("sharpness"), arg("rows"), arg("columns"), arg("slopes"), arg("changes"),
      arg("zeta"), arg("dzeta"), arg("threads"),
      "Slopes of contexts in what windows see, of one image; dy, p, changes, zeta and dzeta may be 0.");
  module.def("average_maps", &average_maps_at, unlocked(), arg("from"), arg("to"), arg("maps"), arg("height"),
             arg("width"), arg("taps"), arg("side"), arg("rows_before"), arg("columns_before"),
             arg("rows_after"), arg("columns_after"), arg("threads"),
             "Maps as windows see them, with weights of rows and columns before or after; those may be 0.");
}

}  // namespace lpn

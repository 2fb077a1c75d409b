// Explicit priors for Python.

#include "prior_bindings.h"

#include "arguments.h"
#include "prior.h"

namespace py = pybind11;

namespace lpn {
namespace {

void explicit_prior(Address x,
                    Address v,
                    Address value,
                    Address out,
                    int64_t images,
                    int64_t channels,
                    int64_t height,
                    int64_t width,
                    int64_t kernel,
                    int64_t groups,
                    Address atoms,
                    Address energies,
                    Address slope,
                    Address near,
                    Address far,
                    bool shared,
                    Address rows,
                    Address columns,
                    Address row_weights,
                    Address column_weights,
                    int threads) {
  require_at_least(0, images, "images");
  require_at_least(1, channels, "channels");
  require_at_least(1, height, "height");
  require_at_least(1, width, "width");
  require_at_least(1, kernel, "kernel");
  require_at_least(1, groups, "groups");
  require_at_least(1, threads, "threads");
  const PriorParameters parameters{
      required<const float>(atoms, "atoms", 1), required<const float>(energies, "energies", 1),
      required<const float>(slope, "slope", 1), required<const float>(near, "near", 1),
      required<const float>(far, "far", 1),     shared};
  const Mirror mirror{required<const int64_t>(rows, "rows", 1),
                      required<const int64_t>(columns, "columns", 1),
                      required<const float>(row_weights, "row_weights", 1),
                      required<const float>(column_weights, "column_weights", 1)};
  const ExplicitPrior prior({images, channels, height, width, kernel, groups}, parameters, mirror);
  prior.run(required<const float>(x, "x", images), optional<const float>(v, "v"),
            optional<double>(value, "value"), required<float>(out, "out", images), threads);
}

}  // namespace

void define_prior(py::module_& module) {
  using py::arg;
  module.def("explicit_prior", &explicit_prior, py::call_guard<py::gil_scoped_release>(), arg("x"), arg("v"),
             arg("value"), arg("out"), arg("images"), arg("channels"), arg("height"), arg("width"),
             arg("kernel"), arg("groups"), arg("atoms"), arg("energies"), arg("slope"), arg("near"),
             arg("far"), arg("shared"), arg("rows"), arg("columns"), arg("row_weights"),
             arg("column_weights"), arg("threads"),
             "out = grad R(x), and value (float64, may be 0) = R(x) without the constants of the potentials; "
             "with v (else 0) out is the Hessian at x times v.");
}

}  // namespace lpn

// Explicit priors for Python.

#include "prior_bindings.h"

#include "arguments.h"
#include "prior.h"

namespace py = pybind11;

namespace lpn {
namespace {

ExplicitPrior prior_of(const PriorShape& shape,
                       int64_t sets,
                       Address atoms,
                       Address energies,
                       Address slope,
                       Address near,
                       Address far,
                       Address rows,
                       Address columns,
                       Address row_weights,
                       Address column_weights) {
  require_at_least(0, shape.images, "images");
  require_at_least(1, shape.channels, "channels");
  require_at_least(1, shape.height, "height");
  require_at_least(1, shape.width, "width");
  require_at_least(1, shape.kernel, "kernel");
  require_at_least(1, shape.atoms, "n");
  require_at_least(1, shape.groups, "groups");
  require_at_least(shape.images > 0, sets, "sets");
  if (sets && shape.images % sets)
    throw std::invalid_argument("sets must divide images, " + std::to_string(shape.images) + ", got " +
                                std::to_string(sets));
  const PriorParameters parameters{
      required<const float>(atoms, "atoms", 1), required<const float>(energies, "energies", 1),
      required<const float>(slope, "slope", 1), required<const float>(near, "near", 1),
      required<const float>(far, "far", 1),     sets};
  const Mirror mirror{required<const int64_t>(rows, "rows", 1),
                      required<const int64_t>(columns, "columns", 1),
                      required<const float>(row_weights, "row_weights", 1),
                      required<const float>(column_weights, "column_weights", 1)};
  return ExplicitPrior(shape, parameters, mirror);
}

void explicit_prior(Address x,
                    Address v,
                    Address value,
                    Address out,
                    int64_t images,
                    int64_t channels,
                    int64_t height,
                    int64_t width,
                    int64_t kernel,
                    int64_t n,
                    int64_t groups,
                    int64_t sets,
                    Address atoms,
                    Address energies,
                    Address slope,
                    Address near,
                    Address far,
                    Address rows,
                    Address columns,
                    Address row_weights,
                    Address column_weights,
                    int threads) {
  require_at_least(1, threads, "threads");
  const ExplicitPrior prior =
      prior_of({images, channels, height, width, kernel, n, groups}, sets, atoms, energies, slope, near, far,
               rows, columns, row_weights, column_weights);
  prior.run(required<const float>(x, "x", images), optional<const float>(v, "v"),
            optional<double>(value, "value"), required<float>(out, "out", images), threads);
}

void explicit_prior_gradient(Address x,
                             Address v,
                             Address p,
                             Address g_atoms,
                             Address g_energies,
                             Address g_slope,
                             Address g_near,
                             Address g_far,
                             int64_t images,
                             int64_t channels,
                             int64_t height,
                             int64_t width,
                             int64_t kernel,
                             int64_t n,
                             int64_t groups,
                             int64_t sets,
                             Address atoms,
                             Address energies,
                             Address slope,
                             Address near,
                             Address far,
                             Address rows,
                             Address columns,
                             Address row_weights,
                             Address column_weights,
                             int threads) {
  require_at_least(1, threads, "threads");
  const ExplicitPrior prior =
      prior_of({images, channels, height, width, kernel, n, groups}, sets, atoms, energies, slope, near, far,
               rows, columns, row_weights, column_weights);
  require_at_least(1, sets, "sets");
  const PriorGradients io{
      required<const float>(x, "x", images),         optional<const float>(v, "v"),
      required<const float>(p, "p", v ? 0 : images), required<float>(g_atoms, "g_atoms", 1),
      required<float>(g_energies, "g_energies", 1),  required<float>(g_slope, "g_slope", 1),
      required<float>(g_near, "g_near", 1),          required<float>(g_far, "g_far", 1)};
  prior.parameter_gradient(io, threads);
}

}  // namespace

void define_prior(py::module_& module) {
  using py::arg;
  module.def("explicit_prior", &explicit_prior, py::call_guard<py::gil_scoped_release>(), arg("x"), arg("v"),
             arg("value"), arg("out"), arg("images"), arg("channels"), arg("height"), arg("width"),
             arg("kernel"), arg("n"), arg("groups"), arg("sets"), arg("atoms"), arg("energies"), arg("slope"),
             arg("near"), arg("far"), arg("rows"), arg("columns"), arg("row_weights"), arg("column_weights"),
             arg("threads"),
             "out = grad R(x), and value (float64, may be 0) = R(x) without the constants of the potentials; "
             "with v (else 0) out is the Hessian at x times v. Each of the sets of potentials is that of "
             "images / sets images one after another.");
  module.def("explicit_prior_gradient", &explicit_prior_gradient, py::call_guard<py::gil_scoped_release>(),
             arg("x"), arg("v"), arg("p"), arg("g_atoms"), arg("g_energies"), arg("g_slope"), arg("g_near"),
             arg("g_far"), arg("images"), arg("channels"), arg("height"), arg("width"), arg("kernel"),
             arg("n"), arg("groups"), arg("sets"), arg("atoms"), arg("energies"), arg("slope"), arg("near"),
             arg("far"), arg("rows"), arg("columns"), arg("row_weights"), arg("column_weights"),
             arg("threads"),
             "Gradients of sum over images of <v, grad R(x)>, or for v = 0 of p R(x), in the atoms and "
             "potentials; bit-equal for any number of threads.");
}

}  // namespace lpn

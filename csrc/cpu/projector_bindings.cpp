// The projector for Python: addresses of contiguous float32 or float64 data, as
// in bindings.cpp.

#include "projector_bindings.h"

#include <cmath>
#include <stdexcept>
#include <string>

#include "arguments.h"
#include "projector.h"

namespace py = pybind11;

namespace lpn {
namespace {

void check(bool good, const std::string& message) {
  if (!good) throw std::invalid_argument(message);
}

// Tables are small, and an infinite position would be an address outside every
// buffer.
const double* table(Address address, const char* name, int64_t count) {
  const double* entries = required<const double>(address, name, count);
  for (int64_t i = 0; i < count; ++i)
    check(std::isfinite(entries[i]),
          std::string(name) + " must be finite, got " + std::to_string(entries[i]));
  return entries;
}

template <class Scalar>
using Map = void (*)(const ProjectorShape&, const double*, const Scalar*, Scalar*, int);

// One of the three maps on either precision; `item` is the size of a number in
// bytes, 4 or 8.
void run(Map<float> in_float,
         Map<double> in_double,
         int64_t entries,
         Address numbers,
         Address from,
         int64_t from_count,
         Address to,
         int64_t to_count,
         const ProjectorShape& shape,
         int item,
         int threads) {
  for (const int64_t size : {shape.height, shape.width, shape.angles, shape.bins})
    require_at_least(1, size, "sizes");
  require_at_least(0, shape.images, "images");
  require_at_least(1, threads, "threads");
  check(item == 4 || item == 8, "item must be 4 or 8, got " + std::to_string(item));
  const double* entry = table(numbers, "table", shape.angles * entries);
  if (item == 4)
    in_float(shape, entry, required<const float>(from, "from", from_count),
             required<float>(to, "to", to_count), threads);
  else
    in_double(shape, entry, required<const double>(from, "from", from_count),
              required<double>(to, "to", to_count), threads);
}

void bind_project(Address views, Address x, Address y, const ProjectorShape& shape, int item, int threads) {
  run(project<float>, project<double>, view_entries, views, x, shape.images * shape.height * shape.width, y,
      shape.images * shape.angles * shape.bins, shape, item, threads);
}

void bind_transposed(
    Address views, Address y, Address x, const ProjectorShape& shape, int item, int threads) {
  run(project_transposed<float>, project_transposed<double>, view_entries, views, y,
      shape.images * shape.angles * shape.bins, x, shape.images * shape.height * shape.width, shape, item,
      threads);
}

void bind_backproject(
    Address smears, Address y, Address x, const ProjectorShape& shape, int item, int threads) {
  run(backproject<float>, backproject<double>, smear_entries, smears, y,
      shape.images * shape.angles * shape.bins, x, shape.images * shape.height * shape.width, shape, item,
      threads);
}

}  // namespace

void define_projector(py::module_& module) {
  using py::arg;
  using unlocked = py::call_guard<py::gil_scoped_release>;
  py::class_<ProjectorShape>(module, "ProjectorShape", "Sizes of a projector call.", py::module_local())
      .def(py::init<int64_t, int64_t, int64_t, int64_t, int64_t>(), arg("images"), arg("height"),
           arg("width"), arg("angles"), arg("bins"));
  module.def("ct_project", &bind_project, unlocked(), arg("views"), arg("x"), arg("y"), arg("shape"),
             arg("item"), arg("threads"),
             "y [images, angles, bins] = line sums of x [images, height, "
             "width]; views: per angle origin, "
             "per_line, per_bin, scale, lines are rows.");
  module.def("ct_project_transposed", &bind_transposed, unlocked(), arg("views"), arg("y"), arg("x"),
             arg("shape"), arg("item"), arg("threads"), "x = transpose of ct_project at y.");
  module.def("ct_backproject", &bind_backproject, unlocked(), arg("smears"), arg("y"), arg("x"), arg("shape"),
             arg("item"), arg("threads"),
             "x = sum over angles of y interpolated at every pixel; smears: "
             "per angle origin, per_row, "
             "per_column, scale.");
}

}  // namespace lpn

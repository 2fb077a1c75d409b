// 3 x 3 correlations by minimal filtering for Python.

#include "winograd_bindings.h"

#include <string>

#include "arguments.h"
#include "kernels.h"
#include "winograd.h"

namespace py = pybind11;

namespace lpn {
namespace {

void require_channels(int64_t channels, const char* name) {
  if (channels < column_multiple || channels % column_multiple)
    throw std::invalid_argument(std::string(name) + " must be a positive multiple of " +
                                std::to_string(column_multiple) + ", got " + std::to_string(channels));
}

void require_weights(int64_t units, int64_t channels, int64_t stride, int threads) {
  require_channels(units, "units");
  require_channels(channels, "channels");
  require_at_least(1, threads, "threads");
  if (stride != 1 && stride != 2)
    throw std::invalid_argument("stride must be 1 or 2, got " + std::to_string(stride));
}

WinogradShape shape_of(int64_t images,
                       int64_t height,
                       int64_t width,
                       int64_t channels,
                       int64_t units,
                       int64_t stride,
                       int threads) {
  require_at_least(0, images, "images");
  require_at_least(1, height, "height");
  require_at_least(1, width, "width");
  require_weights(units, channels, stride, threads);
  return {images, height, width, channels, units, stride};
}

WinogradWorkspace workspace_of(const WinogradShape& shape,
                               Address input_planes,
                               Address output_planes,
                               int64_t plane_rows,
                               int64_t plane_sets) {
  const auto tiles = [&](int64_t size) { return ((size - 1) / shape.stride + 4) / 4; };
  require_at_least(1, plane_sets, "plane_sets");
  require_at_least(tiles(shape.width) * (plane_sets > 1 ? tiles(shape.height) : 1), plane_rows, "plane_rows");
  return {required<float>(input_planes, "input_planes", 1),
          required<float>(output_planes, "output_planes", 1), plane_rows, plane_sets};
}

// `from` and `weights` are read, `to` is written; only the gradient adds to it.
template <
    void (*function)(const WinogradShape&, const float*, const float*, float*, const WinogradWorkspace&, int)>
void run(Address from,
         Address weights,
         Address to,
         Address input_planes,
         Address output_planes,
         int64_t plane_rows,
         int64_t plane_sets,
         int64_t images,
         int64_t height,
         int64_t width,
         int64_t channels,
         int64_t units,
         int64_t stride,
         int threads) {
  const WinogradShape shape = shape_of(images, height, width, channels, units, stride, threads);
  if (images == 0) return;
  function(shape, required<const float>(from, "from", 1), required<const float>(weights, "weights", 1),
           required<float>(to, "to", 1),
           workspace_of(shape, input_planes, output_planes, plane_rows, plane_sets), threads);
}

void pack(Address core,
          Address forward_panels,
          Address adjoint_panels,
          int64_t units,
          int64_t channels,
          int64_t stride,
          int threads) {
  require_weights(units, channels, stride, threads);
  winograd_pack(required<const float>(core, "core", 1), optional<float>(forward_panels, "forward_panels"),
                optional<float>(adjoint_panels, "adjoint_panels"), units, channels, stride, threads);
}

void unpack_gradient(
    Address planes, Address core, int64_t units, int64_t channels, int64_t stride, int threads) {
  require_weights(units, channels, stride, threads);
  winograd_unpack_gradient(required<const float>(planes, "planes", 1), required<float>(core, "core", 1),
                           units, channels, stride, threads);
}

}  // namespace

void define_winograd(py::module_& module) {
  using py::arg;
  using unlocked = py::call_guard<py::gil_scoped_release>;
  const auto define = [&](const char* name, auto function, const char* from, const char* weights,
                          const char* to, const char* text) {
    module.def(name, function, unlocked(), arg(from), arg(weights), arg(to), arg("input_planes"),
               arg("output_planes"), arg("plane_rows"), arg("plane_sets"), arg("images"), arg("height"),
               arg("width"), arg("channels"), arg("units"), arg("stride"), arg("threads"), text);
  };
  define("winograd_forward", &run<&winograd_forward>, "z", "forward_panels", "u",
         "u [images, out_height, out_width, units] = W z, z [images, height, width, channels].");
  define("winograd_adjoint", &run<&winograd_adjoint>, "e", "adjoint_panels", "a",
         "a [images, height, width, channels] = W^T e, e [images, out_height, out_width, units].");
  define("winograd_gradient", &run<&winograd_gradient>, "e", "z", "planes",
         "planes [36 or 81, units, channels] += e (x) z.");
  module.def("winograd_pack", &pack, unlocked(), arg("core"), arg("forward_panels"), arg("adjoint_panels"),
             arg("units"), arg("channels"), arg("stride"), arg("threads"),
             "The packs of G core G^T, core [units, channels, 3, 3]: panels of 32 columns; either may be 0.");
  module.def("winograd_unpack_gradient", &unpack_gradient, unlocked(), arg("planes"), arg("core"),
             arg("units"), arg("channels"), arg("stride"), arg("threads"),
             "core = G^T planes G: how a gradient in the planes is one in the core.");
}

}  // namespace lpn

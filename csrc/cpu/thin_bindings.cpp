// Correlations of few input channels for Python.

#include "thin_bindings.h"

#include <cmath>
#include <string>

#include "arguments.h"
#include "thin.h"

namespace py = pybind11;

namespace lpn {
namespace {

// `image` is [images, height + 2 padding, width + 2 padding, channels], or 0 where it is not read.
Thin operation(Address image,
               int64_t images,
               int64_t height,
               int64_t width,
               int64_t channels,
               int64_t units,
               int64_t kernel,
               int64_t stride,
               int64_t padding,
               int threads) {
  require_at_least(0, images, "images");
  require_at_least(1, channels, "channels");
  require_at_least(1, kernel, "kernel");
  require_at_least(1, stride, "stride");
  require_at_least(0, padding, "padding");
  require_at_least(1, threads, "threads");
  require_at_least(kernel, height + 2 * padding, "height + 2 padding");
  require_at_least(kernel, width + 2 * padding, "width + 2 padding");
  require_at_least(1, units, "units");
  Thin op{};
  op.image = optional<const float>(image, "image");
  op.line = (width + 2 * padding) * channels;
  op.image_step = (height + 2 * padding) * op.line;
  op.channels = channels;
  op.kernel = kernel;
  op.stride = stride;
  op.out_height = (height + 2 * padding - kernel) / stride + 1;
  op.out_width = (width + 2 * padding - kernel) / stride + 1;
  op.units = units;
  return op;
}

template <class Value>
void stage(Address image,
           Address panels,
           Address core,
           Address bias,
           int64_t biases,
           Address z,
           Address out,
           float beta,
           int64_t images,
           int64_t height,
           int64_t width,
           int64_t channels,
           int64_t units,
           int64_t kernel,
           int64_t stride,
           int64_t padding,
           int threads) {
  const Thin op = operation(image, images, height, width, channels, units, kernel, stride, padding, threads);
  if (!(beta > 0.0f) || std::isinf(beta))
    throw std::invalid_argument("beta must be positive and finite, got " + std::to_string(beta));
  if (images == 0) return;
  required<const float>(image, "image", 1);
  thin_stage<Value>(op,
                    {required<const float>(panels, "panels", 1), optional<const Value>(core, "core"),
                     optional<const float>(bias, "bias"), biases > 1 ? units : 0,
                     optional<const Value>(z, "z"), required<Value>(out, "out", 1), beta},
                    images, threads);
}

template <class Value>
void adjoint(Address e,
             Address panels,
             Address x,
             int64_t images,
             int64_t height,
             int64_t width,
             int64_t channels,
             int64_t units,
             int64_t kernel,
             int64_t stride,
             int64_t padding,
             int threads) {
  const Thin op = operation(0, images, height, width, channels, units, kernel, stride, padding, threads);
  if (images == 0) return;
  thin_adjoint<Value>(op, required<const Value>(e, "e", 1), required<const float>(panels, "panels", 1),
                      required<float>(x, "x", 1), images, height, width, padding, threads);
}

template <class Value>
void gradient(Address image,
              Address e,
              Address sum,
              int64_t images,
              int64_t height,
              int64_t width,
              int64_t channels,
              int64_t units,
              int64_t kernel,
              int64_t stride,
              int64_t padding,
              int threads) {
  const Thin op = operation(image, images, height, width, channels, units, kernel, stride, padding, threads);
  if (images == 0) return;
  required<const float>(image, "image", 1);
  thin_gradient<Value>(op, required<const Value>(e, "e", 1), required<float>(sum, "sum", 1), images, threads);
}

template <class Value>
void define(py::module_& module, const std::string& suffix) {
  using py::arg;
  using unlocked = py::call_guard<py::gil_scoped_release>;
  module.def(
      ("thin_stage" + suffix).c_str(), &stage<Value>, unlocked(), arg("image"), arg("panels"), arg("core"),
      arg("bias"), arg("biases"), arg("z"), arg("out"), arg("beta"), arg("images"), arg("height"),
      arg("width"), arg("channels"), arg("units"), arg("kernel"), arg("stride"), arg("padding"),
      arg("threads"),
      "out = softplus(u), or u s(z) where z is given; u = A image + core + bias. core and bias may be 0.");
  module.def(("thin_adjoint" + suffix).c_str(), &adjoint<Value>, unlocked(), arg("e"), arg("panels"),
             arg("x"), arg("images"), arg("height"), arg("width"), arg("channels"), arg("units"),
             arg("kernel"), arg("stride"), arg("padding"), arg("threads"),
             "x [images, channels, height, width] = A^T e, e [images, out_height, out_width, units].");
  module.def(("thin_gradient" + suffix).c_str(), &gradient<Value>, unlocked(), arg("image"), arg("e"),
             arg("sum"), arg("images"), arg("height"), arg("width"), arg("channels"), arg("units"),
             arg("kernel"), arg("stride"), arg("padding"), arg("threads"),
             "sum [kernel^2 channels, units] += patches of the image times e.");
}

}  // namespace

void define_thin(py::module_& module) {
  define<float>(module, "");
  define<BFloat16>(module, "_bfloat16");
}

}  // namespace lpn

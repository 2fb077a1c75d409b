// Correlations of few input channels for Python.

#include "narrow_bindings.h"

#include <cmath>
#include <string>

#include "arguments.h"
#include "narrow.h"

namespace py = pybind11;

namespace lpn {
namespace {

// A correlation and the sizes of its input.
class NarrowProblem {
 public:
  NarrowProblem(int64_t images,
                int64_t height,
                int64_t width,
                int64_t channels,
                int64_t units,
                int64_t kernel,
                int64_t stride,
                int64_t padding)
      : images_(images), height_(height), width_(width), padding_(padding) {
    require_at_least(0, images, "images");
    require_at_least(1, channels, "channels");
    require_at_least(1, kernel, "kernel");
    require_at_least(1, stride, "stride");
    require_at_least(0, padding, "padding");
    require_at_least(kernel, height + 2 * padding, "height + 2 padding");
    require_at_least(kernel, width + 2 * padding, "width + 2 padding");
    require_at_least(1, units, "units");
    op_.line = (width + 2 * padding) * channels;
    op_.image_step = (height + 2 * padding) * op_.line;
    op_.channels = channels;
    op_.kernel = kernel;
    op_.stride = stride;
    op_.out_height = (height + 2 * padding - kernel) / stride + 1;
    op_.out_width = (width + 2 * padding - kernel) / stride + 1;
    op_.units = units;
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
             int threads) const {
    require_at_least(1, threads, "threads");
    if (!(beta > 0.0f) || std::isinf(beta))
      throw std::invalid_argument("beta must be positive and finite, got " + std::to_string(beta));
    if (images_ == 0) return;
    narrow_stage<Value>(of(image),
                        {required<const float>(panels, "panels", 1), optional<const Value>(core, "core"),
                         optional<const float>(bias, "bias"), biases > 1 ? op_.units : 0,
                         optional<const Value>(z, "z"), required<Value>(out, "out", 1), beta},
                        images_, threads);
  }

  template <class Value>
  void adjoint(Address e, Address panels, Address x, int threads) const {
    require_at_least(1, threads, "threads");
    if (images_ == 0) return;
    narrow_adjoint<Value>(op_, required<const Value>(e, "e", 1), required<const float>(panels, "panels", 1),
                          required<float>(x, "x", 1), images_, height_, width_, padding_, threads);
  }

  template <class Value>
  void gradient(Address image, Address e, Address sum, int threads) const {
    require_at_least(1, threads, "threads");
    if (images_ == 0) return;
    narrow_gradient<Value>(of(image), required<const Value>(e, "e", 1), required<float>(sum, "sum", 1),
                           images_, threads);
  }

 private:
  // image: [images, height + 2 padding, width + 2 padding, channels]
  Narrow of(Address image) const {
    Narrow op = op_;
    op.image = required<const float>(image, "image", 1);
    return op;
  }

  Narrow op_{};
  int64_t images_, height_, width_, padding_;
};

template <class Value>
void define(py::class_<NarrowProblem>& narrow, const std::string& suffix) {
  using py::arg;
  using unlocked = py::call_guard<py::gil_scoped_release>;
  narrow.def(
      ("stage" + suffix).c_str(), &NarrowProblem::stage<Value>, unlocked(), arg("image"), arg("panels"),
      arg("core"), arg("bias"), arg("biases"), arg("z"), arg("out"), arg("beta"), arg("threads"),
      "out = softplus(u), or u s(z) where z is given; u = A image + core + bias. core and bias may be 0.");
  narrow.def(("adjoint" + suffix).c_str(), &NarrowProblem::adjoint<Value>, unlocked(), arg("e"),
             arg("panels"), arg("x"), arg("threads"),
             "x [images, channels, height, width] = A^T e, e [images, out_height, out_width, units].");
  narrow.def(("gradient" + suffix).c_str(), &NarrowProblem::gradient<Value>, unlocked(), arg("image"),
             arg("e"), arg("sum"), arg("threads"),
             "sum [kernel^2 channels, units] += patches of the image times e.");
}

}  // namespace

void define_narrow(py::module_& module) {
  using py::arg;
  py::class_<NarrowProblem> narrow(module, "Narrow",
                                   "A correlation of few input channels, and the sizes of its input.");
  narrow.def(py::init<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>(),
             arg("images"), arg("height"), arg("width"), arg("channels"), arg("units"), arg("kernel"),
             arg("stride"), arg("padding"));
  define<float>(narrow, "");
  define<BFloat16>(narrow, "_bfloat16");
}

}  // namespace lpn

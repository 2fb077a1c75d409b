// 3 x 3 correlations by minimal filtering for Python: the transforms; the products of planes are the
// caller's.

#include "winograd_bindings.h"

#include <algorithm>
#include <string>

#include "arguments.h"
#include "isa.h"
#include "threads.h"

namespace py = pybind11;

namespace lpn {
namespace {

// Channels are a multiple of the widest vector of all instruction sets.
constexpr int64_t channel_multiple = 16;

// Channels that one worker adds up: 64 floats are four cache lines per pixel, enough for the prefetcher.
constexpr int64_t channel_group = 64;

constexpr int64_t tile_side = 4;

// 8 tiles of 256 channels and 36 planes are some 50 us of work.
constexpr int64_t tiles_per_range = 8;

constexpr int64_t units_per_range = 4;

void require_channels(int64_t channels) {
  if (channels < channel_multiple || channels % channel_multiple)
    throw std::invalid_argument("channels must be a positive multiple of " +
                                std::to_string(channel_multiple) + ", got " + std::to_string(channels));
}

void require_stride(int64_t stride) {
  if (stride != 1 && stride != 2)
    throw std::invalid_argument("stride must be 1 or 2, got " + std::to_string(stride));
}

template <void (*Kernels::*kernel)(const Winograd&, int64_t, int64_t), bool by_channel_group>
void run_tiles(Address pixels,
               Address planes,
               int64_t plane,
               int64_t images,
               int64_t height,
               int64_t width,
               int64_t channels,
               int64_t stride,
               int threads) {
  require_at_least(0, images, "images");
  require_at_least(1, height, "height");
  require_at_least(1, width, "width");
  require_at_least(1, threads, "threads");
  require_channels(channels);
  require_stride(stride);
  Winograd op{};
  op.channels = channels;
  op.group = channels % channel_group ? channel_multiple : channel_group;
  op.stride = stride;
  op.height = height;
  op.width = width;
  op.out_height = (height - 1) / stride + 1;
  op.out_width = (width - 1) / stride + 1;
  op.tile_rows = (op.out_height + tile_side - 1) / tile_side;
  op.tile_columns = (op.out_width + tile_side - 1) / tile_side;
  const int64_t tiles = images * op.tile_rows * op.tile_columns;
  op.plane = plane;
  require_at_least(tiles * channels, plane, "plane");
  op.pixels = required<float>(pixels, "pixels", images);
  op.planes = required<float>(planes, "planes", images);
  const auto run = active_kernels().*kernel;
  const int64_t items = by_channel_group ? images * (channels / op.group) : tiles;
  parallel_for(items, by_channel_group ? 1 : tiles_per_range, threads,
               [&](int, int64_t begin, int64_t end) { run(op, begin, end); });
}

template <void (*Kernels::*kernel)(const WinogradWeights&, int64_t, int64_t)>
void run_weights(Address core, Address planes, int64_t units, int64_t channels, int64_t stride, int threads) {
  require_at_least(1, units, "units");
  require_at_least(1, threads, "threads");
  require_channels(channels);
  require_stride(stride);
  const WinogradWeights op{required<float>(core, "core", units), required<float>(planes, "planes", units),
                           units * channels, channels, stride};
  const auto run = active_kernels().*kernel;
  parallel_for(units, units_per_range, threads,
               [&](int, int64_t begin, int64_t end) { run(op, begin, end); });
}

}  // namespace

void define_winograd(py::module_& module) {
  using py::arg;
  using unlocked = py::call_guard<py::gil_scoped_release>;
  const auto define_tiles = [&](const char* name, auto function, const char* text) {
    module.def(name, function, unlocked(), arg("pixels"), arg("planes"), arg("plane"), arg("images"),
               arg("height"), arg("width"), arg("channels"), arg("stride"), arg("threads"), text);
  };
  define_tiles("winograd_inputs", &run_tiles<&Kernels::winograd_inputs, false>,
               "planes = B^T d B of every tile of pixels [images, height, width, channels].");
  define_tiles("winograd_inputs_adjoint", &run_tiles<&Kernels::winograd_inputs_adjoint, true>,
               "pixels [images, height, width, channels] = sum over tiles of B planes B^T.");
  define_tiles("winograd_outputs", &run_tiles<&Kernels::winograd_outputs, false>,
               "pixels = A^T planes A; height and width are those of the input.");
  define_tiles("winograd_outputs_adjoint", &run_tiles<&Kernels::winograd_outputs_adjoint, false>,
               "planes = A pixels A^T; height and width are those of the input.");
  const auto define_weights = [&](const char* name, auto function, const char* text) {
    module.def(name, function, unlocked(), arg("core"), arg("planes"), arg("units"), arg("channels"),
               arg("stride"), arg("threads"), text);
  };
  define_weights("winograd_weights", &run_weights<&Kernels::winograd_weights>,
                 "planes [36 or 81, units, channels] = G core G^T, core [units, channels, 3, 3].");
  define_weights("winograd_weights_adjoint", &run_weights<&Kernels::winograd_weights_adjoint>,
                 "core = G^T planes G: how a gradient in the planes is one in the core.");
}

}  // namespace lpn

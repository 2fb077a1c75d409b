// Groups of whole rows of tiles go through the transforms and the products; their planes stay in the cache.

#include "winograd.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "isa.h"
#include "threads.h"

namespace lpn {
namespace {

constexpr int64_t tile_side = 4;        // outputs
constexpr int64_t tiles_per_range = 8;  // 8 tiles of 256 channels and 36 planes are some 50 us of work
constexpr int64_t units_per_range = 4;

int64_t plane_count(int64_t stride) { return stride == 1 ? 36 : 81; }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The kernels' view of z (channels) or of W z (units), and how the tiles are grouped.
//
// Large images go through in groups that all workers share, step by step: the products need many tiles for
// each pass over U. Of small ones, few channels at that, a group is whole images and one worker's own: its
// planes stay in that worker's cache and nobody waits for anybody.
struct Plan {
  const WinogradShape& shape;
  WinogradWorkspace workspace;
  int threads;
  const Kernels& kernels = active_kernels();
  int64_t planes = plane_count(shape.stride);
  int64_t out_height = (shape.height - 1) / shape.stride + 1,
          out_width = (shape.width - 1) / shape.stride + 1;
  int64_t tile_rows = ceil_div(out_height, tile_side), tile_columns = ceil_div(out_width, tile_side);
  // Stand in for pixels beyond the border: read, and written by each worker.
  int64_t widest = std::max(shape.channels, shape.units);
  std::vector<float> zeros = std::vector<float>(widest), lost = std::vector<float>(widest * threads);

  Winograd view(const float* pixels, float* to, int64_t channels) const {
    return {const_cast<float*>(pixels),
            to,
            workspace.plane_rows * channels,
            channels,
            shape.stride,
            shape.height,
            shape.width,
            out_height,
            out_width,
            tile_rows,
            tile_columns,
            0,
            const_cast<float*>(zeros.data())};
  }
  Winograd inputs(const float* z) const { return view(z, workspace.input_planes, shape.channels); }
  Winograd outputs(const float* u) const { return view(u, workspace.output_planes, shape.units); }

  // body(plan, first row of tiles, end), counted through all images; each plan has its planes to itself
  template <class Body>
  void for_each_group(Body body) const {
    const int64_t rows = shape.images * tile_rows;
    if (workspace.count > 1) {
      const int64_t step = std::max<int64_t>(1, workspace.plane_rows / (tile_rows * tile_columns));
      parallel_for(shape.images, step, static_cast<int>(std::min<int64_t>(threads, workspace.count)),
                   [&](int worker, int64_t first, int64_t end) {
                     body(alone(worker), first * tile_rows, end * tile_rows);
                   });
      return;
    }
    const int64_t step = std::max<int64_t>(1, workspace.plane_rows / tile_columns);
    for (int64_t first = 0; first < rows; first += step) body(*this, first, std::min(first + step, rows));
  }

  Plan alone(int worker) const {
    WinogradWorkspace own = workspace;
    own.count = 1;
    own.input_planes += worker * planes * workspace.plane_rows * shape.channels;
    own.output_planes += worker * planes * workspace.plane_rows * shape.units;
    return {shape, own, 1};
  }

  void run(void (*kernel)(const Winograd&, int64_t, int64_t), Winograd op, int64_t first, int64_t end) const {
    op.first = first * tile_columns;
    parallel_for((end - first) * tile_columns, tiles_per_range, threads,
                 [&](int, int64_t from, int64_t to) { kernel(op, from, to); });
  }

  void write_outputs(Winograd op, int64_t first, int64_t end) const {
    op.first = first * tile_columns;
    parallel_for((end - first) * tile_columns, tiles_per_range, threads,
                 [&](int worker, int64_t from, int64_t to) {
                   kernels.winograd_outputs(losing(op, worker), from, to);
                 });
  }

  // Rows of tiles that touch run one after the other: first the even ones, then the odd ones.
  void add_inputs_adjoint(Winograd op, int64_t first, int64_t end) const {
    op.first = first * tile_columns;
    for (int64_t parity : {0, 1}) {
      const int64_t skipped = (first + parity) % 2;
      parallel_for(ceil_div(end - first - skipped, 2), 1, threads, [&](int worker, int64_t from, int64_t to) {
        for (int64_t row = skipped + 2 * from; row < skipped + 2 * to; row += 2)
          kernels.winograd_inputs_adjoint(losing(op, worker), row * tile_columns, (row + 1) * tile_columns);
      });
    }
  }

  // `op` of one worker, which writes what lies beyond the border where nobody reads it
  Winograd losing(Winograd op, int worker) const {
    op.outside = const_cast<float*>(lost.data()) + worker * widest;
    return op;
  }

  // out = from panels, plane by plane, for `tiles` rows
  void multiply(const Winograd& from, const float* panels, const Winograd& to, int64_t tiles) const {
    const int64_t panel = from.channels * panel_width, plane = ceil_div(to.channels, panel_width) * panel;
    parallel_for(planes, 1, threads, [&](int, int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p) {
        PanelProduct product{};
        product.a = from.planes + p * from.plane;
        product.row_stride = from.channels;
        product.depth_stride = 1;
        product.segments = 1;
        product.panels = panels + p * plane;
        product.panel_step = panel;
        product.depth_step = panel_width;
        product.depth = from.channels;
        product.columns = to.channels;
        product.out = to.planes + p * to.plane;
        product.out_stride = to.channels;
        kernels.panel_product(product, 0, tiles);
      }
    });
  }
};

}  // namespace

void winograd_pack(const float* core,
                   float* forward_panels,
                   float* adjoint_panels,
                   int64_t units,
                   int64_t channels,
                   int64_t stride,
                   int threads) {
  const WinogradWeights op{core, forward_panels, adjoint_panels, units, channels, stride};
  const auto run = active_kernels().winograd_weights;
  parallel_for(units / column_multiple, 1, threads,
               [&](int, int64_t begin, int64_t end) { run(op, begin, end); });
}

void winograd_forward(const WinogradShape& shape,
                      const float* z,
                      const float* forward_panels,
                      float* u,
                      const WinogradWorkspace& workspace,
                      int threads) {
  const Plan whole{shape, workspace, threads};
  whole.for_each_group([&](const Plan& plan, int64_t first, int64_t end) {
    const Winograd inputs = plan.inputs(z), outputs = plan.outputs(u);
    plan.run(plan.kernels.winograd_inputs, inputs, first, end);
    plan.multiply(inputs, forward_panels, outputs, (end - first) * plan.tile_columns);
    plan.write_outputs(outputs, first, end);
  });
}

void winograd_adjoint(const WinogradShape& shape,
                      const float* e,
                      const float* adjoint_panels,
                      float* a,
                      const WinogradWorkspace& workspace,
                      int threads) {
  const Plan whole{shape, workspace, threads};
  const int64_t row = shape.width * shape.channels;
  parallel_for(shape.images * shape.height, 1, threads, [&](int, int64_t begin, int64_t end) {
    std::memset(a + begin * row, 0, (end - begin) * row * 4);
  });
  whole.for_each_group([&](const Plan& plan, int64_t first, int64_t end) {
    const Winograd inputs = plan.inputs(a), outputs = plan.outputs(e);
    plan.run(plan.kernels.winograd_outputs_adjoint, outputs, first, end);
    plan.multiply(outputs, adjoint_panels, inputs, (end - first) * plan.tile_columns);
    plan.add_inputs_adjoint(inputs, first, end);
  });
}

void winograd_gradient(const WinogradShape& shape,
                       const float* e,
                       const float* z,
                       float* planes,
                       const WinogradWorkspace& workspace,
                       int threads) {
  const Plan whole{shape, workspace, threads};
  whole.for_each_group([&](const Plan& plan, int64_t first, int64_t end) {
    const Winograd inputs = plan.inputs(z), outputs = plan.outputs(e);
    plan.run(plan.kernels.winograd_inputs, inputs, first, end);
    plan.run(plan.kernels.winograd_outputs_adjoint, outputs, first, end);
    parallel_for(plan.planes, 1, threads, [&](int, int64_t begin, int64_t last) {
      for (int64_t p = begin; p < last; ++p)
        plan.kernels.gradient_product(
            {outputs.planes + p * outputs.plane, shape.units, inputs.planes + p * inputs.plane,
             shape.channels, (end - first) * plan.tile_columns, shape.channels,
             planes + p * shape.units * shape.channels},
            0, shape.units);
    });
  });
}

void winograd_unpack_gradient(
    const float* planes, float* core, int64_t units, int64_t channels, int64_t stride, int threads) {
  const WinogradGradient op{core, planes, units, channels, stride};
  const auto run = active_kernels().winograd_weights_adjoint;
  parallel_for(units, units_per_range, threads,
               [&](int, int64_t begin, int64_t end) { run(op, begin, end); });
}

}  // namespace lpn

// Correlations of few input channels: the skips A_l, and whole first stages.
//
//   stage      z = softplus(W z' + A x + b)   or   dz = (W dz' + A v) s(z), in one pass: the product A x is
//   formed
//              in registers and meets what it is added to there
//   adjoint    A^T e = fold(e A): per pixel one row of kernel^2 channels numbers, added to where they belong
//   gradient   e (x) x = patches^T e
//
// x lies padded and channels-last, so that the taps of a kernel row are `kernel channels` numbers in a row: a
// patch is `kernel` such segments, read where they are. With one channel and 7 x 7 taps the product has 49
// multiply-adds per output against one softplus, some 40 instructions.

#pragma once

#include "../kernels.h"
#include "activation.h"
#include "exponentials.h"
#include "panels.h"

namespace lpn {
namespace {

// Where the patch of output (row, 0) starts; rows are counted through all images.
inline const float* patches_of(const Narrow& op, int64_t row) {
  return op.image + row / op.out_height * op.image_step + row % op.out_height * op.stride * op.line;
}

inline int64_t filled_lanes(int64_t units, int64_t unit) {
  return units - unit < lanes ? units - unit : lanes;
}

// What becomes of A x in `pixels` x `vectors` vectors from pixel and unit on; four of them hide the latency.
template <int pixels, int vectors, class Value>
inline void finish_stage(const Narrow& op,
                         const NarrowStage<Value>& stage,
                         const SoftplusRates& rates,
                         const float* bias,  // [units] or nullptr
                         int64_t pixel,      // counted through all images
                         int64_t unit,
                         const Vec (*sums)[2]) {
  Group<pixels * vectors> u;
  for (int i = 0; i < pixels; ++i)
    for (int j = 0; j < vectors; ++j) {
      const int64_t at = unit + j * lanes, count = filled_lanes(op.units, at);
      Vec sum = sums[i][j];
      if (stage.core) sum += load(stage.core + (pixel + i) * op.units + at, count);
      if (bias) sum += load(bias + at, count);
      u.part[i * vectors + j] = sum;
    }
  if (!stage.z) u = activate(u, rates).z;
  for (int i = 0; i < pixels; ++i)
    for (int j = 0; j < vectors; ++j) {
      const int64_t at = unit + j * lanes, count = filled_lanes(op.units, at);
      const int64_t to = (pixel + i) * op.units + at;
      Vec out = u.part[i * vectors + j];
      if (stage.z) out *= slope_from_z(load(stage.z + to, count), stage.beta).s;
      store(stage.out + to, out, count);
    }
}

template <class Value>
void narrow_stage(const Narrow& op, const NarrowStage<Value>& stage, int64_t begin, int64_t end) {
  const SoftplusRates rates(stage.beta);
  const int64_t taps = op.kernel * op.channels;
  PanelProduct product{};
  product.row_stride = op.stride * op.channels;
  product.depth_stride = 1;
  product.segments = op.kernel;
  product.segment_step = op.line;
  product.panels = stage.panels;
  product.panel_step = op.kernel * taps * panel_width;
  product.depth_step = panel_width;
  product.depth = taps;
  product.columns = op.units;
  for (int64_t row = begin; row < end; ++row) {
    product.a = patches_of(op, row);
    const float* bias = stage.bias ? stage.bias + row / op.out_height * stage.bias_step : nullptr;
    const auto finish = [&](int64_t pixel, int64_t pixels, int64_t unit, const TileSums& sums, auto vectors) {
      constexpr int together = 4 / vectors.value;
      const int64_t first = row * op.out_width + pixel;
      int64_t i = 0;
      for (; i + together <= pixels; i += together)
        finish_stage<together, vectors.value>(op, stage, rates, bias, first + i, unit, sums.at + i);
      for (; i < pixels; ++i)
        finish_stage<1, vectors.value>(op, stage, rates, bias, first + i, unit, sums.at + i);
    };
    for (int64_t pixel = 0; pixel < op.out_width; pixel += narrow_pixels)
      product_with_panels(product, pixel,
                          op.out_width - pixel < narrow_pixels ? op.out_width : pixel + narrow_pixels,
                          finish);
  }
}

// Rows of floats as they are; rows of halves widened into `scratch`.
inline const float* as_floats(const float* from, int64_t, float*) { return from; }
inline const float* as_floats(const BFloat16* from, int64_t count, float* scratch) {
  for (int64_t i = 0; i < count; i += lanes) {
    const int64_t filled = filled_lanes(count, i);
    store(scratch + i, load(from + i, filled), filled);
  }
  return scratch;
}

template <class Value>
void narrow_adjoint(const Narrow& op, const NarrowAdjoint<Value>& adjoint, int64_t begin, int64_t end) {
  const int64_t taps = op.kernel * op.channels, height = (end - begin - 1) * op.stride + op.kernel;
  for (int64_t i = 0; i < height * op.line; ++i) adjoint.block[i] = 0.0f;
  float* parts = adjoint.scratch + narrow_pixels * op.units;  // [pixels, columns]
  PanelProduct product{};
  product.row_stride = op.units;
  product.depth_stride = 1;
  product.segments = 1;
  product.panels = adjoint.panels;
  product.panel_step = op.units * panel_width;
  product.depth_step = panel_width;
  product.depth = op.units;
  product.columns = adjoint.columns;
  product.out = parts;
  product.out_stride = adjoint.columns;
  for (int64_t row = begin; row < end; ++row)
    for (int64_t first = 0; first < op.out_width; first += narrow_pixels) {
      const int64_t pixels = op.out_width - first < narrow_pixels ? op.out_width - first : narrow_pixels;
      const Value* e = adjoint.e + (row * op.out_width + first) * op.units;
      product.a = as_floats(e, pixels * op.units, adjoint.scratch);
      panel_product(product, 0, pixels);
      for (int64_t i = 0; i < op.kernel; ++i) {
        float* line = adjoint.block + ((row - begin) * op.stride + i) * op.line;
        for (int64_t pixel = 0; pixel < pixels; ++pixel) {
          const float* from = parts + pixel * adjoint.columns + i * taps;
          float* to = line + (first + pixel) * op.stride * op.channels;
          for (int64_t t = 0; t < taps; ++t) to[t] += from[t];
        }
      }
    }
}

template <class Value>
void narrow_gradient(const Narrow& op, const ThinGradient<Value>& gradient, int64_t begin, int64_t end) {
  const int64_t taps = op.kernel * op.channels, columns = op.kernel * taps;
  int64_t held = 0;
  const Value* e = gradient.e + begin * op.out_width * op.units;
  const auto multiply = [&] {
    // In order, as the prefetcher likes it: a panel takes a few lines from each row of e.
    float* rows = gradient.scratch + narrow_pixels * columns;  // [pixels, gradient.columns]
    for (int64_t pixel = 0; pixel < held; ++pixel)
      for (int64_t i = 0; i < op.units; i += lanes)
        store(rows + pixel * gradient.columns + i, load(e + pixel * op.units + i, filled_lanes(op.units, i)));
    gradient_product(
        {gradient.scratch, columns, rows, gradient.columns, held, gradient.columns, gradient.sum}, 0,
        columns);
    e += held * op.units;
    held = 0;
  };
  for (int64_t row = begin; row < end; ++row)
    for (int64_t pixel = 0; pixel < op.out_width; ++pixel) {
      const float* patch = patches_of(op, row) + pixel * op.stride * op.channels;
      float* to = gradient.scratch + held * columns;
      for (int64_t i = 0; i < op.kernel; ++i)
        for (int64_t t = 0; t < taps; ++t) to[i * taps + t] = patch[i * op.line + t];
      if (++held == narrow_pixels) multiply();
    }
  if (held) multiply();
}

template <class Value>
constexpr ThinKernels<Value> narrow_kernels() {
  return {narrow_stage<Value>, narrow_adjoint<Value>, narrow_gradient<Value>};
}

}  // namespace
}  // namespace lpn

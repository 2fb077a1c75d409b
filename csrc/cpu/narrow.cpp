// What is added up by several workers is added up in blocks that depend on the sizes alone, then in order.

#include "narrow.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "isa.h"
#include "threads.h"

namespace lpn {
namespace {

// Output elements per range of a thread: some 50 us of work.
constexpr int64_t elements_per_range = int64_t{1} << 15;

// Rows whose adjoint is added up together; their blocks overlap in kernel - stride rows.
constexpr int64_t rows_per_block = 16;

constexpr int64_t gradient_parts = 16;

const ThinKernels<float>& kernels_of(float) { return active_kernels().narrow_float; }
const ThinKernels<BFloat16>& kernels_of(BFloat16) { return active_kernels().thin_bfloat16; }

int64_t whole_columns(int64_t count) {
  return (count + column_multiple - 1) / column_multiple * column_multiple;
}

std::unique_ptr<float[]> floats(int64_t count) { return std::unique_ptr<float[]>(new float[count]); }

}  // namespace

template <class Value>
void narrow_stage(const Narrow& op, const NarrowStage<Value>& stage, int64_t images, int threads) {
  const auto run = kernels_of(Value{}).stage;
  const int64_t grain = std::max<int64_t>(1, elements_per_range / (op.out_width * op.units));
  parallel_for(images * op.out_height, grain, threads,
               [&](int, int64_t begin, int64_t end) { run(op, stage, begin, end); });
}

template <class Value>
void narrow_adjoint(const Narrow& op,
                    const Value* e,
                    const float* panels,
                    float* x,
                    int64_t images,
                    int64_t height,
                    int64_t width,
                    int64_t padding,
                    int threads) {
  const auto run = kernels_of(Value{}).adjoint;
  const int64_t rounded = whole_columns(op.kernel * op.kernel * op.channels);
  const int64_t blocks = (op.out_height + rows_per_block - 1) / rows_per_block,
                block_step = rows_per_block * op.stride,
                block_size = (block_step - op.stride + op.kernel) * op.line;
  const int64_t image = op.out_height * op.out_width * op.units;
  const auto parts = floats(images * blocks * block_size);
  std::vector<std::unique_ptr<float[]>> scratch(threads);
  parallel_for(images * blocks, 1, threads, [&](int worker, int64_t begin, int64_t end) {
    if (!scratch[worker]) scratch[worker] = floats(narrow_pixels * (op.units + rounded));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % blocks * rows_per_block;
      run(op, {e + i / blocks * image, panels, rounded, parts.get() + i * block_size, scratch[worker].get()},
          first, std::min(first + rows_per_block, op.out_height));
    }
  });
  parallel_for(images * height, std::max<int64_t>(1, elements_per_range / width), threads,
               [&](int, int64_t begin, int64_t end) {
                 std::vector<float> line(width * op.channels);
                 for (int64_t row = begin; row < end; ++row) {
                   const int64_t n = row / height, y = row % height + padding;
                   std::fill(line.begin(), line.end(), 0.0f);
                   for (int64_t b = 0; b < blocks; ++b) {
                     const int64_t rows = std::min(rows_per_block, op.out_height - b * rows_per_block);
                     const int64_t within = y - b * block_step;
                     if (within < 0 || within >= (rows - 1) * op.stride + op.kernel) continue;
                     const float* from = parts.get() + (n * blocks + b) * block_size + within * op.line +
                                         padding * op.channels;
                     for (size_t i = 0; i < line.size(); ++i) line[i] += from[i];
                   }
                   for (int64_t c = 0; c < op.channels; ++c) {
                     float* to = x + ((n * op.channels + c) * height + row % height) * width;
                     for (int64_t i = 0; i < width; ++i) to[i] = line[i * op.channels + c];
                   }
                 }
               });
}

template <class Value>
void narrow_gradient(const Narrow& op, const Value* e, float* sum, int64_t images, int threads) {
  const auto run = kernels_of(Value{}).gradient;
  const int64_t taps = op.kernel * op.kernel * op.channels, columns = whole_columns(op.units),
                size = taps * columns;
  const int64_t rows = images * op.out_height;
  const auto parts = floats(gradient_parts * size);
  std::vector<std::unique_ptr<float[]>> scratch(threads);
  parallel_for(gradient_parts, 1, threads, [&](int worker, int64_t begin, int64_t end) {
    if (!scratch[worker]) scratch[worker] = floats(narrow_pixels * (taps + columns));
    for (int64_t part = begin; part < end; ++part) {
      float* to = parts.get() + part * size;
      std::fill(to, to + size, 0.0f);
      run(op, {e, columns, to, scratch[worker].get()}, part * rows / gradient_parts,
          (part + 1) * rows / gradient_parts);
    }
  });
  for (int64_t part = 0; part < gradient_parts; ++part)
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t i = 0; i < op.units; ++i)
        sum[tap * op.units + i] += parts[part * size + tap * columns + i];
}

template void narrow_stage(const Narrow&, const NarrowStage<float>&, int64_t, int);
template void narrow_stage(const Narrow&, const NarrowStage<BFloat16>&, int64_t, int);
template void narrow_adjoint(
    const Narrow&, const float*, const float*, float*, int64_t, int64_t, int64_t, int64_t, int);
template void narrow_adjoint(
    const Narrow&, const BFloat16*, const float*, float*, int64_t, int64_t, int64_t, int64_t, int);
template void narrow_gradient(const Narrow&, const float*, float*, int64_t, int);
template void narrow_gradient(const Narrow&, const BFloat16*, float*, int64_t, int);

}  // namespace lpn

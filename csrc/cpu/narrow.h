// Correlations of few input channels on all threads (isa/narrow.h). Value is float or BFloat16.

#pragma once

#include "kernels.h"

namespace lpn {

template <class Value>
void narrow_stage(const Narrow& op, const NarrowStage<Value>& stage, int64_t images, int threads);

// x [images, channels, height, width] = fold(e A); op.line covers the padded width.
template <class Value>
void narrow_adjoint(const Narrow& op,
                    const Value* e,       // [images, out_height, out_width, units]
                    const float* panels,  // [ceil(columns / 32)][units][32]
                    float* x,
                    int64_t images,
                    int64_t height,
                    int64_t width,
                    int64_t padding,
                    int threads);

// sum [kernel^2 channels, units] += patches^T e. The order of additions does not depend on the threads.
template <class Value>
void narrow_gradient(const Narrow& op,
                     const Value* e,  // [images, out_height, out_width, units]
                     float* sum,
                     int64_t images,
                     int threads);

}  // namespace lpn

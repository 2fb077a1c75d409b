// A 3 x 3 correlation, its adjoint and its weight gradient by minimal filtering (isa/winograd.h).

#pragma once

#include <cstdint>

namespace lpn {

// Padding is 1; channels and units are multiples of 16.
struct WinogradShape {
  int64_t images;
  int64_t height, width;  // size of z
  int64_t channels;       // in z
  int64_t units;          // in W z
  int64_t stride;         // 1 or 2
};

struct WinogradWorkspace {
  float* input_planes;   // [count, planes, plane_rows, channels]
  float* output_planes;  // [count, planes, plane_rows, units]
  int64_t plane_rows;  // room for at least one row of tiles; for a whole image where there are several planes
  int64_t count;       // workers that have planes of their own; 1: all share them. 1 for gradients
};

// U = G core G^T as the two products read it; either may be nullptr.
void winograd_pack(const float* core,      // [units, channels, 3, 3]
                   float* forward_panels,  // [planes][ceil(units / 32)][channels][32]
                   float* adjoint_panels,  // [planes][ceil(channels / 32)][units][32]
                   int64_t units,
                   int64_t channels,
                   int64_t stride,
                   int threads);

void winograd_forward(const WinogradShape& shape,
                      const float* z,               // [images, height, width, channels]
                      const float* forward_panels,  //
                      float* u,                     // [images, out_height, out_width, units]
                      const WinogradWorkspace& workspace,
                      int threads);

void winograd_adjoint(const WinogradShape& shape,
                      const float* e,               // [images, out_height, out_width, units]
                      const float* adjoint_panels,  //
                      float* a,                     // [images, height, width, channels]
                      const WinogradWorkspace& workspace,
                      int threads);

// Adds e (x) z in the planes.
void winograd_gradient(const WinogradShape& shape,
                       const float* e,  // [images, out_height, out_width, units]
                       const float* z,  // [images, height, width, channels]
                       float* planes,   // [planes, units, channels]
                       const WinogradWorkspace& workspace,
                       int threads);

// core = G^T planes G
void winograd_unpack_gradient(const float* planes,  // [planes, units, channels]
                              float* core,          // [units, channels, 3, 3]
                              int64_t units,
                              int64_t channels,
                              int64_t stride,
                              int threads);

}  // namespace lpn

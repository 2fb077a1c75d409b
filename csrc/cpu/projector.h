// Parallel-beam projector: forward, exact transpose, and the interpolating back-projection of FBP.
//
// Joseph's model. A ray that is steeper than 45 degrees crosses every image row once, the others every
// column. Where ray k of an angle crosses line l (a row, or a column),
//
//   p = origin + l per_line + k per_bin        in pixels along the line
//   y[angle, k] = scale sum_l x[l, p],         x[l, p] by linear interpolation along the line
//
// with the five numbers per angle from Python, where the geometry lives. FBP's back-projection is the same
// resampling with the roles changed: an image row takes samples from the rows of the sinogram.
//
// Images go in groups of as many as a vector has lanes, so memory does not grow with the batch:
// two copies of a group, one with rows and one with columns as lines, and a sinogram.

#pragma once

#include <cstdint>

namespace lpn {

// Entries of an angle in the tables.
constexpr int64_t view_entries = 5;   // origin, per_line, per_bin, scale, 1 if lines are rows else 0
constexpr int64_t smear_entries = 4;  // origin, per_row, per_column, scale

struct ProjectorShape {
  int64_t images;
  int64_t height;
  int64_t width;
  int64_t angles;
  int64_t bins;
};

// Every result is the same to the last bit whatever the number of threads.
template <class Scalar>
void project(const ProjectorShape& shape,
             const double* views,  // [angles, view_entries]
             const Scalar* x,      // [images, height, width]
             Scalar* y,            // [images, angles, bins]
             int threads);

template <class Scalar>
void project_transposed(const ProjectorShape& shape,
                        const double* views,  // [angles, view_entries]
                        const Scalar* y,      // [images, angles, bins]
                        Scalar* x,            // [images, height, width]
                        int threads);

// x[r, c] = sum over angles of  scale y[angle, origin + r per_row + c per_column]
template <class Scalar>
void backproject(const ProjectorShape& shape,
                 const double* smears,  // [angles, smear_entries]
                 const Scalar* y,       // [images, angles, bins]
                 Scalar* x,             // [images, height, width]
                 int threads);

}  // namespace lpn

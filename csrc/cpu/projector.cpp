#include "projector.h"

#include <algorithm>
#include <vector>

#include "isa.h"
#include "threads.h"

namespace lpn {
namespace {

// Lines that are taken through all angles of a chunk together: 8 x 515 elements of 32 B are 130 KB, in L2.
constexpr int64_t lines_per_block = 8;
// Most angles of a chunk: 16 x 400 bins of 32 B are 200 KB of sums, in L2 too.
constexpr int64_t angles_per_chunk = 16;

template <class Scalar>
const ResampleKernels<Scalar>& resampling();
template <>
const ResampleKernels<float>& resampling() {
  return active_kernels().resample_float;
}
template <>
const ResampleKernels<double>& resampling() {
  return active_kernels().resample_double;
}

// The images first .. first + count - 1 of a batch, as one group.
struct Group {
  int64_t first, count;
};

// One of the two sets of lines of an image.
struct LineSet {
  bool rows;
  int64_t lines, positions;
  int64_t line_stride, position_stride;  // in an image [height, width]
  std::vector<int64_t> angles;           // whose rays cross these lines
};

LineSet line_set(const ProjectorShape& shape, const double* views, bool rows) {
  LineSet set{rows,
              rows ? shape.height : shape.width,
              rows ? shape.width : shape.height,
              rows ? shape.width : 1,
              rows ? 1 : shape.width,
              {}};
  for (int64_t a = 0; a < shape.angles; ++a)
    if ((views[a * view_entries + 4] != 0.0) == rows) set.angles.push_back(a);
  return set;
}

Sampling crossing(const double* view, int64_t line, int64_t positions, int64_t bins) {
  return {view[0] + static_cast<double>(line) * view[1], view[2], view[3], positions, bins};
}

// [lines, positions + pad, lanes] from an image batch; pads and lanes without an image are zero.
template <class Scalar>
void pack_lines(const LineSet& set,
                const Scalar* x,  // [images, height, width]
                Group group,
                int64_t lanes,
                std::vector<Scalar>& packed,
                int threads) {
  const int64_t line_size = (set.positions + pad) * lanes;
  const int64_t image_size = set.lines * set.positions;
  packed.assign(set.lines * line_size, Scalar(0));
  parallel_for(set.lines, lines_per_block, threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t lane = 0; lane < group.count; ++lane) {
      const Scalar* image = x + (group.first + lane) * image_size;
      for (int64_t p = 0; p < set.positions; ++p)
        for (int64_t l = begin; l < end; ++l)
          packed[l * line_size + (pad_before + p) * lanes + lane] =
              image[l * set.line_stride + p * set.position_stride];
    }
  });
}

// [angles, bins + edge, lanes] from a sinogram batch; `before` zeros lead every row.
template <class Scalar>
void pack_sinogram(const ProjectorShape& shape,
                   const Scalar* y,  // [images, angles, bins]
                   Group group,
                   int64_t lanes,
                   int64_t before,
                   int64_t edge,
                   std::vector<Scalar>& packed,
                   int threads) {
  const int64_t row_size = (shape.bins + edge) * lanes;
  packed.assign(shape.angles * row_size, Scalar(0));
  parallel_for(shape.angles, 1, threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t a = begin; a < end; ++a)
      for (int64_t lane = 0; lane < group.count; ++lane) {
        const Scalar* row = y + ((group.first + lane) * shape.angles + a) * shape.bins;
        for (int64_t k = 0; k < shape.bins; ++k) packed[a * row_size + (before + k) * lanes + lane] = row[k];
      }
  });
}

// Images in groups of as many as there are lanes; body(group).
template <class Body>
void for_groups(int64_t images, int64_t lanes, const Body& body) {
  for (int64_t first = 0; first < images; first += lanes) body(Group{first, std::min(lanes, images - first)});
}

}  // namespace

template <class Scalar>
void project(const ProjectorShape& shape, const double* views, const Scalar* x, Scalar* y, int threads) {
  const ResampleKernels<Scalar>& kernels = resampling<Scalar>();
  const int64_t lanes = kernels.lanes, row_size = shape.bins * lanes;
  const int64_t chunk = std::clamp<int64_t>(shape.angles / (4 * threads), 1, angles_per_chunk);
  std::vector<Scalar> packed;
  for (const bool rows : {true, false}) {
    const LineSet set = line_set(shape, views, rows);
    const int64_t line_size = (set.positions + pad) * lanes;
    if (set.angles.empty()) continue;
    for_groups(shape.images, lanes, [&](Group group) {
      pack_lines(set, x, group, lanes, packed, threads);
      const auto some_angles = [&](int, int64_t begin, int64_t end) {
        std::vector<Scalar> sums((end - begin) * row_size);  // [angles of the chunk, bins, lanes]
        for (int64_t block = 0; block < set.lines; block += lines_per_block)
          for (int64_t i = begin; i < end; ++i)
            for (int64_t l = block; l < std::min(block + lines_per_block, set.lines); ++l)
              kernels.gather(crossing(views + set.angles[i] * view_entries, l, set.positions, shape.bins),
                             packed.data() + l * line_size, sums.data() + (i - begin) * row_size);
        for (int64_t i = begin; i < end; ++i)
          for (int64_t lane = 0; lane < group.count; ++lane) {
            Scalar* out = y + ((group.first + lane) * shape.angles + set.angles[i]) * shape.bins;
            const Scalar* sum = sums.data() + (i - begin) * row_size + lane;
            for (int64_t k = 0; k < shape.bins; ++k) out[k] = sum[k * lanes];
          }
      };
      parallel_for(static_cast<int64_t>(set.angles.size()), chunk, threads, some_angles);
    });
  }
}

template <class Scalar>
void project_transposed(
    const ProjectorShape& shape, const double* views, const Scalar* y, Scalar* x, int threads) {
  const ResampleKernels<Scalar>& kernels = resampling<Scalar>();
  const int64_t lanes = kernels.lanes, row_size = shape.bins * lanes;
  const int64_t image_size = shape.height * shape.width;
  const LineSet sets[] = {line_set(shape, views, true), line_set(shape, views, false)};
  std::vector<Scalar> packed;
  for_groups(shape.images, lanes, [&](Group group) {
    pack_sinogram(shape, y, group, lanes, 0, 0, packed, threads);
    // Rows are written, columns added to them afterwards; a thread owns its lines, so no two write to one
    // pixel.
    for (const LineSet& set : sets) {
      const int64_t line_size = (set.positions + pad) * lanes;
      parallel_for(set.lines, lines_per_block, threads, [&](int, int64_t begin, int64_t end) {
        std::vector<Scalar> lines((end - begin) * line_size);  // [lines of the block, positions + pad, lanes]
        for (const int64_t a : set.angles)
          for (int64_t l = begin; l < end; ++l)
            kernels.scatter(crossing(views + a * view_entries, l, set.positions, shape.bins),
                            packed.data() + a * row_size, lines.data() + (l - begin) * line_size);
        for (int64_t lane = 0; lane < group.count; ++lane) {
          Scalar* image = x + (group.first + lane) * image_size;
          for (int64_t p = 0; p < set.positions; ++p)
            for (int64_t l = begin; l < end; ++l) {
              Scalar& pixel = image[l * set.line_stride + p * set.position_stride];
              const Scalar value = lines[(l - begin) * line_size + (pad_before + p) * lanes + lane];
              pixel = set.rows ? value : pixel + value;
            }
        }
      });
    }
  });
}

template <class Scalar>
void backproject(const ProjectorShape& shape, const double* smears, const Scalar* y, Scalar* x, int threads) {
  const ResampleKernels<Scalar>& kernels = resampling<Scalar>();
  const int64_t lanes = kernels.lanes, row_size = (shape.bins + pad) * lanes;
  std::vector<Scalar> packed;
  for_groups(shape.images, lanes, [&](Group group) {
    pack_sinogram(shape, y, group, lanes, pad_before, pad, packed, threads);
    parallel_for(shape.height, lines_per_block, threads, [&](int, int64_t begin, int64_t end) {
      std::vector<Scalar> rows((end - begin) * shape.width * lanes);
      for (int64_t a = 0; a < shape.angles; ++a)
        for (int64_t r = begin; r < end; ++r) {
          const double* smear = smears + a * smear_entries;
          kernels.gather(
              {smear[0] + static_cast<double>(r) * smear[1], smear[2], smear[3], shape.bins, shape.width},
              packed.data() + a * row_size, rows.data() + (r - begin) * shape.width * lanes);
        }
      for (int64_t lane = 0; lane < group.count; ++lane)
        for (int64_t r = begin; r < end; ++r) {
          Scalar* out = x + ((group.first + lane) * shape.height + r) * shape.width;
          const Scalar* row = rows.data() + (r - begin) * shape.width * lanes + lane;
          for (int64_t c = 0; c < shape.width; ++c) out[c] = row[c * lanes];
        }
    });
  });
}

template void project(const ProjectorShape&, const double*, const float*, float*, int);
template void project(const ProjectorShape&, const double*, const double*, double*, int);
template void project_transposed(const ProjectorShape&, const double*, const float*, float*, int);
template void project_transposed(const ProjectorShape&, const double*, const double*, double*, int);
template void backproject(const ProjectorShape&, const double*, const float*, float*, int);
template void backproject(const ProjectorShape&, const double*, const double*, double*, int);

}  // namespace lpn

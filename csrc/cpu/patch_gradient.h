// Parameter gradients of networks of patches, from partial ones of blocks of positions (frame.cpp,
// experts.cpp).

#pragma once

#include "frame_kernels.h"
#include "mlp.h"

namespace lpn {

// Partial gradients: what the gates have (mlp.h), then [units, columns] of the filters, then what a caller
// has. As many belong to every image; their number depends on shapes alone, and so does the order of
// additions.
class PatchGradient {
 public:
  PatchGradient(const Frame& op, const Network& gates, int64_t images, int64_t blocks, int64_t more = 0);

  int64_t per_image() const { return per_image_; }
  int64_t chunks() const { return images_ * per_image_; }
  int64_t filters_at() const { return gates_.partial_size(); }
  int64_t more_at() const { return filters_at() + op_.units * op_.columns; }
  int64_t size() const { return more_at() + more_; }

  // Their sums in P, and of every image those of the biases.
  void add_up(const float* partials,  // [chunks(), size()]
              float* gP,
              int64_t filters_at,  // where K begins in P
              float* biases,       // [images, gates of all stages]
              int threads) const;

 private:
  const Frame& op_;
  const Network& gates_;
  int64_t images_, per_image_, more_;
};

}  // namespace lpn

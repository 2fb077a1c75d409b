// Explicit priors on all threads (isa/prior.h).

#pragma once

#include <vector>

#include "mlp.h"
#include "prior_kernels.h"

namespace lpn {

struct PriorShape {
  int64_t images, channels, height, width;  // images and their sizes
  int64_t kernel;
  int64_t groups;
};

struct PriorParameters {
  const float* atoms;     // [n, channels, kernel, kernel], n = channels kernel^2
  const float* energies;  // [images or 1, groups, n]
  const float* slope;     // [images or 1, groups]
  const float* near;      // as slope
  const float* far;       // as slope
  bool shared;            // whether all images share one set of potentials
};

class ExplicitPrior {
 public:
  // Of `mirror` the weights of columns need no zeros at the end.
  ExplicitPrior(const PriorShape& shape, const PriorParameters& parameters, const Mirror& mirror);

  ExplicitPrior(const ExplicitPrior&) = delete;  // op_ points into weights_
  ExplicitPrior& operator=(const ExplicitPrior&) = delete;

  // The order of additions depends on shapes alone.
  void run(const float* x,  // [images, channels, height, width]
           const float* v,  // as x, for Hessian products, or nullptr
           double* value,   // [images] or nullptr
           float* out,      // as x: grad R(x), or the Hessian times v
           int threads) const;

 private:
  class Scratch;

  int64_t image_size() const { return op_.channels * op_.height * op_.width; }
  int64_t positions() const { return op_.height + op_.kernel - 1; }  // along a column

  Frame op_{};
  PriorParameters parameters_;
  std::vector<float> weights_;  // of positions, those along columns with zeros behind
  int64_t images_, groups_;
  int64_t rows_;    // rows of positions that go together
  int64_t blocks_;  // per image
};

}  // namespace lpn

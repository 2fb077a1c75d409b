// Explicit priors on all threads (isa/prior.h).

#pragma once

#include <algorithm>
#include <vector>

#include "mlp.h"
#include "prior_kernels.h"
#include "support.h"

namespace lpn {

struct PriorShape {
  int64_t images, channels, height, width;  // images and their sizes
  int64_t kernel;
  int64_t atoms, groups;
};

struct PriorParameters {
  const float* atoms;     // [n, channels, kernel, kernel]
  const float* energies;  // [sets, groups, n]
  const float* slope;     // [sets, groups]
  const float* near;      // as slope
  const float* far;       // as slope
  int64_t sets;           // of potentials, each of images / sets images one after another
};

struct PriorGradients {
  const float* x;   // [images, channels, height, width]
  const float* v;   // as x or nullptr
  const float* p;   // [images], where v is nullptr
  float* atoms;     // all as in PriorParameters
  float* energies;  //
  float* slope;
  float* near;
  float* far;
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

  // Gradients of the parameters of  sum over images of <v, grad R(x)>, or of p R(x), overwritten. The order
  // of additions depends on shapes alone.
  void parameter_gradient(const PriorGradients& io, int threads) const;

 private:
  class Scratch;

  // Rows of positions of an image, in blocks that go together.
  struct Rows {
    int64_t first, end, together, blocks;
    int64_t begin_of(int64_t block) const { return first + block * together; }
    int64_t end_of(int64_t block) const { return std::min(begin_of(block) + together, end); }
  };

  // Floats of a chunk's gradients, and where they lie.
  int64_t partial_size() const;
  PriorPartial partial_at(float* memory) const;
  void add_up(const float* partials, int64_t chunks, const PriorGradients& io, int threads) const;

  // Potentials of the n-th image.
  GroupPotentials potentials_of(int64_t n) const;

  bool atoms_are_mirrored() const;
  void split_atoms();
  bool groups_are_mirrored() const;
  void leave_out_copies();
  Rows divided(int64_t first, int64_t count) const;

  int64_t image_size() const { return op_.channels * op_.height * op_.width; }
  PriorFrame op_{};
  PriorFrame centred_{};  // op_, or without positions that repeat others
  PriorParameters parameters_;
  Supports supports_;                             // of the energies
  std::vector<float> weights_, centred_weights_;  // of positions, those along columns with zeros behind
  std::vector<float> parts_;                      // of atoms in fours
  int64_t images_, groups_, group_columns_;
  Rows all_, used_;  // positions of op_ and of centred_
};

}  // namespace lpn

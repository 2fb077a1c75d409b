// Experts of single pixels that compete in contexts, on all threads (isa/experts.h). What lies between the
// two passes, averages over neighbourhoods and what contexts make of them, is the caller's.

#pragma once

#include <vector>

#include "continuation.h"
#include "experts_kernels.h"
#include "mlp.h"

namespace lpn {

class PatchGradient;

struct ExpertsFirst {
  const float* x;  // [images, channels, height, width]
  const float* v;  // as x or nullptr
  float* sums;     // [images, contexts, positions]   L
  float* logs;     // as sums                          log L
  float* changes;  // as sums, where v is              dl
  float* kept;     // [images, kept_size] or nullptr: written for `second`
  double* totals;  // [images, 3]   sums of w largest, w mean of du, w h . z_1
};

struct ExpertsSecond {
  const float* x;
  const float* v;        // as x or nullptr
  const float* p;        // [images] or nullptr
  const float* slopes;   // [images, contexts, positions] or nullptr   lambda / L
  const float* changes;  // as slopes or nullptr: f                     (mu - lambda dl) / L
  float* kept;           // as before or nullptr: computed again
  float* out;            // as x: f, or H v + p f
  float* gP;             // [numel] or nullptr: gradients of the experts, of K, and of h
  int64_t numel;
  int64_t filters_at;    // where K begins in P
  float* bias_gradient;  // [images, experts], where gP is
  float* odds_gradient;  // [images, contexts, experts], where gP is
};

class ExpertNetwork {
 public:
  // `gates` has the experts as its only stage. Throws std::invalid_argument where it has another.
  ExpertNetwork(const FrameShape& shape,
                const float* filters,  // as Frame has them
                const Network& gates,
                const float* biases,  // [images or 1, experts]
                const float* odds,    // [images or 1, contexts, experts]
                int64_t contexts,
                bool shared,  // by all images: biases and odds
                float alpha,
                const Mirror& mirror);

  ExpertNetwork(const ExpertNetwork&) = delete;  // op_ points into weights_
  ExpertNetwork& operator=(const ExpertNetwork&) = delete;

  // Floats that an image leaves between the passes.
  int64_t kept_size(bool along_v) const { return height() * tiles() * tile_floats(along_v); }

  // The order of additions depends on shapes alone.
  void first(const ExpertsFirst& io, int threads) const;
  void second(const ExpertsSecond& io, int threads) const;

 private:
  class Scratch;

  int64_t experts() const { return network_.units(); }
  int64_t image_size() const { return op_.channels / (op_.spacing * op_.spacing) * op_.height * op_.width; }
  int64_t height() const { return op_.down; }  // of the positions
  int64_t width() const { return op_.across; }
  int64_t tiles() const;
  int64_t tile_floats(bool along_v) const { return (along_v ? 2 : 1) * (op_.units + experts()) * block_rows; }
  Experts at(int64_t image, bool along_v) const;
  void odds_of_images(const PatchGradient& gradient, const float* partials, float* to) const;

  Frame op_{};
  std::vector<float> weights_;  // of mirrored positions
  const Network& network_;
  const float* biases_;
  const float* odds_;
  int64_t contexts_;
  bool shared_;
  int64_t images_;
  int64_t rows_;    // rows of positions that go together
  int64_t blocks_;  // blocks in an image
};

void compete(const Competition& op, int threads);

// Of all maps; the order of additions depends on shapes alone.
void average_maps(const Average& op,
                  const float* from,  // [maps, height, width]
                  float* to,          // as from, apart from it
                  int64_t maps,
                  int threads);

}  // namespace lpn

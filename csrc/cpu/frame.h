// A squared first stage under gates of single pixels, on all threads (isa/frame.h, isa/frame_second.h).

#pragma once

#include <vector>

#include "continuation.h"
#include "frame_kernels.h"
#include "mlp.h"

namespace lpn {

struct FrameVjp {
  const float* x;  // [images, channels, height, width]
  const float* v;  // as x or nullptr, cotangent of f
  const float* p;  // [images] or nullptr, cotangent of psi
  float* gx;       // as x: H v + p f
  float* gP;       // [numel] or nullptr: gradient of P; that of what the biases are made of is in `biases`
  int64_t numel;   //
  int64_t filters_at;    // where K begins in P
  float* bias_gradient;  // [images, gates of all stages], where gP is
};

class FrameNetwork {
 public:
  // `gates` is the dense network of a pixel's z_1, without alpha; its biases are read from `biases`. Throws
  // std::invalid_argument where it has what the kernels do not know.
  FrameNetwork(const FrameShape& shape,
               const float* filters,  // [units, channels, kernel, kernel]
               const Network& gates,
               const float* biases,  // [images or 1, gates of all stages]
               int64_t bias_step,    // from one image to the next, or 0
               float alpha,
               const Mirror& mirror);  // its weights of columns need no zeros at the end

  FrameNetwork(const FrameNetwork&) = delete;  // gates_ points into stages_, op_ into weights_
  FrameNetwork& operator=(const FrameNetwork&) = delete;

  // The order of additions depends on shapes alone.
  void value_prox(const float* x,  // [images, channels, height, width]
                  double* psi,     // [images] or nullptr
                  float* f,        // as x
                  int threads) const;
  void vjp(const FrameVjp& io, int threads) const;

 private:
  class Scratch;

  int64_t image_size() const { return op_.channels * op_.height * op_.width; }
  int64_t height() const { return op_.down; }  // of the coefficients

  Frame op_{};
  std::vector<float> weights_;  // of mirrored positions
  const Network& network_;
  std::vector<MlpStage> stages_;  // [images, gate stages], each with its bias
  std::vector<Mlp> gates_;        // [images]
  int64_t images_;
  int64_t rows_;    // rows of coefficients that go together
  int64_t blocks_;  // blocks in an image
};

}  // namespace lpn

// A squared first stage under gates of single pixels, on all threads (isa/frame.h).

#pragma once

#include <vector>

#include "frame_kernels.h"

namespace lpn {

class FrameNetwork {
 public:
  // `op` without its gates and lines, which follow from the rest. Throws std::invalid_argument where `gates`
  // do not fit on each other.
  FrameNetwork(const Frame& op, std::vector<FrameGates> gates, float alpha);

  FrameNetwork(const FrameNetwork&) = delete;  // op_ points into gates_
  FrameNetwork& operator=(const FrameNetwork&) = delete;

  // The order of additions depends on the size of an image alone.
  void value_prox(const float* x,  // [images, channels, height, width]
                  double* psi,     // [images] or nullptr
                  float* f,        // as x
                  int64_t images,
                  int threads) const;

 private:
  class Scratch;

  std::vector<FrameGates> gates_;
  Frame op_;
  float alpha_;
  int64_t rows_;    // of coefficients that go together
  int64_t blocks_;  // of an image
};

}  // namespace lpn

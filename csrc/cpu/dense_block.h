// The dense block of ESRGAN (arXiv 1809.00219, section 3.1) on channels-last images; ops/dense_block.py has the
// formula.
#pragma once

#include "../common/scalar.h"

namespace resshift::cpu {

struct DenseBlock {
  static constexpr int kConvs = 5;

  const void* x;  // [B, H, W, C]
  void* y;        // the same
  // [3, 3, C + i G, G] of the convolutions i = 0 … 3, and [3, 3, C + 4 G, C], each of x's dtype or float32.
  const void* weights[kConvs];
  const float* biases[kConvs];
  Dtype dtype, weight_dtypes[kConvs];
  std::int64_t batch, height, width, channels, growth;  // C and G: G is a multiple of 16, and C one of G
  float slope, scale;                                   // of the leaky ReLU, and of what is added to x
};

// Convolve by tiles of 4, 6 or 8 outputs a side.
void dense_block(const DenseBlock& call, int tile);

}  // namespace resshift::cpu

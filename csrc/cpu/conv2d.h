// 3×3 convolution with stride 1 of channels-last images on the CPU, by Winograd's algorithm (Lavin and Gray, arXiv
// 1509.09308). It serves conv2d and, with `upsample`, upsample_conv2d; ops/conv2d.py and ops/upsample_conv2d.py have
// the formulas.
#pragma once

#include "../common/scalar.h"

namespace resshift::cpu {

// x is read as group_norm(x), with SiLU where that is set, and after nearest ×2 upsampling. The result is multiplied,
// then goes through a leaky ReLU, then the residual is added.
struct Conv2d {
  const void* x;               // [B, H, W, C]
  const void* weight;          // [3, 3, C, O], of x's dtype or float32
  const float* bias;           // [O], or null
  const float* normalization;  // [B, 3, C]: mean, multiplier and offset, or null
  const void* residual;        // [B, H', W', O], or null
  void* y;                     // [B, H', W', O]
  Dtype dtype, weight_dtype;
  bool silu, upsample;
  std::int64_t batch, height, width, channels, out_channels, padding;
  std::int64_t tap_stride, channel_stride;  // of the weight
  float scale = 1, slope = 1;               // of the result, and of its leaky ReLU; 1 for none

  RSF_INLINE std::int64_t in_height() const { return height << upsample; }
  RSF_INLINE std::int64_t in_width() const { return width << upsample; }
  RSF_INLINE std::int64_t out_height() const { return in_height() + 2 * padding - 2; }
  RSF_INLINE std::int64_t out_width() const { return in_width() + 2 * padding - 2; }
};

// Convolve by tiles of 4, 6 or 8 outputs a side.
void conv2d(const Conv2d& call, int tile);

// The gradient of the weight, float32 [3, 3, C, O], from x and the gradient of the result in `y`, which is only read.
void conv2d_weight_gradient(const Conv2d& call, float* gradient);

}  // namespace resshift::cpu

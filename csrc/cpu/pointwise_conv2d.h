// 1×1 convolution of channels-last images on the CPU; ops/pointwise_conv2d.py has the formula.
#pragma once

#include "../common/scalar.h"

namespace resshift::cpu {

// One call, for `pixels` pixels of a batch from pixel `first` on, to which x, residual and y point.
struct PointwiseConv2d {
  const void* x;                                                   // [pixels, C]
  const void* weight;                                              // [O, C]
  const void* bias;                                                // [O], or null
  const float* normalization;                                      // [B, 3, C]: mean, multiplier and offset, or null
  const void* residual;                                            // [pixels, O], or null
  void* y;                                                         // [pixels, O]
  Dtype dtype, weight_dtype, bias_dtype, residual_dtype, y_dtype;  // the first is x's
  bool gelu;                                                       // of product and bias; then there is no residual
  std::int64_t pixels, first, image_pixels, channels, out_channels;
};

void pointwise_conv2d(const PointwiseConv2d& call);

}  // namespace resshift::cpu

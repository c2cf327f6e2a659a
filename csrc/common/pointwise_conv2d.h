// The arguments of pointwise_conv2d on GPUs; ops/pointwise_conv2d.py has the formula.
#pragma once

#include "result.h"
#include "view.h"

namespace resshift {

struct PointwiseConv2d {
  const void* x;       // [images, pixels, channels], of the result's dtype, 16-byte aligned
  const void* weight;  // [result.channels, channels], of the same, 16-byte aligned
  std::int64_t images, pixels;
  std::int32_t channels;
  std::int32_t groups;          // of the normalization of x; 0: none
  const float* statistics;      // [images, 2, groups]: mean and 1 / √(variance + eps)
  View norm_weight, norm_bias;  // [channels]
  Result result;                // [images, pixels, result.channels]
  NextNorm next;
};

}  // namespace resshift

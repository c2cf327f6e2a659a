// What becomes of a matrix product on the pixels of images, and the statistics of the group normalization after it;
// ops/norm_stats.py has their formula.
#pragma once

#include <cstdint>

#include "platform.h"
#include "scalar.h"

namespace resshift {

// y = product + bias + residual, each [pixels, channels]; of y's dtype or float32.
struct Result {
  void* y;               // 16-byte aligned
  const void* bias;      // [channels], 16-byte aligned, or null
  const void* residual;  // 16-byte aligned, or null
  Dtype dtype, bias_dtype, residual_dtype;
  std::int32_t channels;
};

// The statistics of y, if `groups` is not 0.
struct NextNorm {
  std::int32_t groups;
  float eps;
  float* entries;     // scratch memory of the size that the device asks for
  int* counters;      // [images], zeros before and after
  float* statistics;  // [images, 2, groups]: mean and 1 / √(variance + eps)
};

}  // namespace resshift

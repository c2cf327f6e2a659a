// The arguments of group_norm and its gradient; ops/group_norm.py has the formulas.
#pragma once

#include "view.h"

namespace resshift {

// Images [B, C, pixels], or [B, pixels, C] where channels_last, whose channels are normalized in groups.
struct GroupedImages {
  Dtype dtype;
  bool channels_last;
  std::int64_t batch, channels, pixels, num_groups;

  RSF_INLINE std::int64_t elements() const { return batch * channels * pixels; }
};

// What follows normalization: (norm · weight + bias)(1 + scale) + shift, then the activation.
struct Affine {
  View weight, bias;  // [C]
  View scale, shift;  // [B, C], or no data
  bool silu;
};

struct GroupNorm {
  GroupedImages images;
  const void* x;
  Affine affine;
  float eps;
  void* y;
  float* mean;     // [B, G]
  float* rstd;     // [B, G]: 1 / deviation
  float* scratch;  // of the size that the device's group_norm_scratch returns
};

struct GroupNormBackward {
  GroupedImages images;
  const void *dy, *x;
  const float *mean, *rstd;  // of the forward pass
  Affine affine;
  void* dx;
  float *dweight, *dbias;  // [C]
  float *dscale, *dshift;  // [B, C]
  float* scratch;          // of the size that the device's group_norm_backward_scratch returns
};

}  // namespace resshift

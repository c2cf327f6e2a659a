// Launchers of group_norm's kernels; they return the cudaError_t of the launch. ops/group_norm.py has the formulas.
#pragma once

#include "../common/group_norm.h"

namespace resshift::cuda {

struct GroupNorm {
  GroupedImages images;
  const void* x;
  Affine affine;
  float eps;
  void* y;
  float* mean;             // [B, G]
  float* rstd;             // [B, G]: 1 / deviation
  float* scratch;          // as many as group_norm_scratch says
  std::int64_t parts = 0;  // that the pixels of an image are cut into, about; 0: as many as are fastest
};

struct GroupNormBackward {
  GroupedImages images;
  const void *dy, *x;
  const float *mean, *rstd;  // of the forward pass
  Affine affine;
  void* dx;
  float *dweight, *dbias;  // [C]
  float *dscale, *dshift;  // [B, C]
  float* scratch;          // as many as group_norm_backward_scratch says
  std::int64_t parts = 0;
};

// Floats of scratch memory that a call needs; all else of the call must be set.
std::int64_t group_norm_scratch(const GroupNorm& call);
std::int64_t group_norm_backward_scratch(const GroupNormBackward& call);

int group_norm(const GroupNorm& call, void* stream);
int group_norm_backward(const GroupNormBackward& call, void* stream);

}  // namespace resshift::cuda

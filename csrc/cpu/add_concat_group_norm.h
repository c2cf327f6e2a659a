// Sum or concatenation of two images and its group_norm on the CPU; ops/add_concat_group_norm.py has the formulas.
#pragma once

#include "group_norm.h"

namespace resshift::cpu {

struct AddConcatGroupNorm {
  GroupNorm norm;         // of the merged images, which norm.x points to; channels last, without mean and rstd
  void* merged;           // [B, pixels, C], written
  const void *x, *other;  // [B, pixels, C1] and [B, pixels, C2]
  std::int64_t channels;  // C1
  bool concat;            // else the sum
  float* table;           // [B, 3, C], scratch
};

// norm.scratch is of the size that group_norm_affine_scratch returns.
void add_concat_group_norm(const AddConcatGroupNorm& call);

}  // namespace resshift::cpu

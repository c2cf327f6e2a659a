// Attention with one head between all pixels of an image on the CPU; ops/spatial_attention.py has the formula.
#pragma once

#include "../common/scalar.h"

namespace resshift::cpu {

struct SpatialAttention {
  const void *q, *k, *v;  // [B, pixels, C]
  void* out;              // [B, pixels, C]
  Dtype dtype;
  std::int64_t batch, pixels, channels;
};

void spatial_attention(const SpatialAttention& call);

}  // namespace resshift::cpu

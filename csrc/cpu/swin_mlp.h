// The MLP of a Swin block on the CPU; ops/swin_mlp.py has the formula.
#pragma once

#include "pointwise_conv2d.h"

namespace resshift::cpu {

// x + second(gelu(first(norm(x)))).
struct SwinMlp {
  const void* x;                                        // [B, pixels, C]
  const float* normalization;                           // [B, 3, C]: mean, multiplier and offset
  const void *w1, *w2;                                  // [hidden, C] and [C, hidden]
  const void *b1, *b2;                                  // [hidden] and [C]
  void* y;                                              // [B, pixels, C]
  Dtype dtype, w1_dtype, w2_dtype, b1_dtype, b2_dtype;  // the first is that of x and y
  std::int64_t batch, pixels, channels, hidden;
};

void swin_mlp(const SwinMlp& call);

}  // namespace resshift::cpu

// Two channels-last images side by side in their channels, the second one after a leaky ReLU.
#pragma once

#include <cstdint>

#include "../common/scalar.h"

namespace resshift::cpu {

struct Concat {
  const void *x, *other;  // [B, H, W, C1] and [B, H, W, C2]
  void* y;                // [B, H, W, C1 + C2]
  std::int64_t pixels;    // of all images
  std::int64_t channels, other_channels;
  Dtype dtype;
  float slope;  // of the leaky ReLU; 1 for none
};

void concat(const Concat& call);

}  // namespace resshift::cpu

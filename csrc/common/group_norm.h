// What group_norm normalizes and how; ops/group_norm.py has the formulas.
#pragma once

#include "view.h"

namespace resshift {

// Images [B, C, pixels], or [B, pixels, C] where channels_last, whose channels are normalized in groups.
struct GroupedImages {
  Dtype dtype;
  bool channels_last;
  std::int64_t batch, channels, pixels, num_groups;
};

// What follows normalization: (norm · weight + bias)(1 + scale) + shift, then the activation.
struct Affine {
  View weight, bias;  // [C]
  View scale, shift;  // [B, C], or no data
  bool silu;
};

}  // namespace resshift

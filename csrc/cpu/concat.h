// Two channels-last images side by side in their channels.
#pragma once

#include <cstdint>

namespace resshift::cpu {

struct Concat {
  const void *x, *other;            // [B, H, W, C1] and [B, H, W, C2]
  void* y;                          // [B, H, W, C1 + C2]
  std::int64_t pixels;              // of all images
  std::int64_t bytes, other_bytes;  // of a pixel
};

void concat(const Concat& call);

}  // namespace resshift::cpu

// Images whose layout and dtype are known at run time only.
#pragma once

#include <cstdint>

#include "platform.h"
#include "scalar.h"

namespace resshift {

// A tensor [B, C, pixels] in any layout, strides in elements; `data` is null where there is no tensor.
struct View {
  const void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  std::int64_t image = 0, channel = 0, pixel = 0;
};

RSF_INLINE float load(const View& view, std::int64_t index) {
  switch (view.dtype) {
    case Dtype::kFloat16:
      return to_float(static_cast<const Half*>(view.data)[index]);
    case Dtype::kBFloat16:
      return to_float(static_cast<const BFloat16*>(view.data)[index]);
    default:
      return static_cast<const float*>(view.data)[index];
  }
}

RSF_INLINE std::int64_t offset(const View& view, std::int64_t image, std::int64_t channel, std::int64_t pixel) {
  return image * view.image + channel * view.channel + pixel * view.pixel;
}

RSF_INLINE float load(const View& view, std::int64_t image, std::int64_t channel, std::int64_t pixel) {
  return load(view, offset(view, image, channel, pixel));
}

RSF_INLINE void store(void* data, Dtype dtype, std::int64_t index, float value) {
  switch (dtype) {
    case Dtype::kFloat16:
      static_cast<Half*>(data)[index] = from_float<Half>(value);
      break;
    case Dtype::kBFloat16:
      static_cast<BFloat16*>(data)[index] = from_float<BFloat16>(value);
      break;
    default:
      static_cast<float*>(data)[index] = value;
  }
}

}  // namespace resshift

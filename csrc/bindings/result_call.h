// What becomes of a matrix product, from tensors.
#pragma once

#include "../common/result.h"
#include "arguments.h"

namespace resshift::bindings {

template <class Array>
void check_parameter(const Array& x, Dtype dtype, const char* name) {
  const Dtype own = dtype_of(x, name);
  require(own == Dtype::kFloat32 || own == dtype, name, " must be float32 or have the image's dtype");
}

// The result of a product on images of `dtype`; y and the residual have the same layout.
template <class Array>
Result result_call(Array& y, Dtype dtype, std::int64_t channels, const std::optional<Array>& bias,
                   const std::optional<Array>& residual) {
  require(channels > 0 && channels < (std::int64_t{1} << 30), "there are ", channels,
          " output channels, expected 1 to 2^30");
  Result result{
      write<void>(y), read<void>(bias), read<void>(residual), dtype, dtype, dtype, static_cast<std::int32_t>(channels)};
  if (bias) {
    check_device(*bias, y, "bias");
    check_parameter(*bias, dtype, "bias");
    require(bias->dim() == 1 && bias->size(0) == channels, "bias must be [O] to match the weight");
    result.bias_dtype = dtype_of(*bias, "bias");
  }
  if (residual) {
    check_device(*residual, y, "residual");
    check_parameter(*residual, dtype, "residual");
    require(residual->dim() == 4, "residual must have y's shape");
    for (int i = 0; i < 4; ++i) require(residual->size(i) == y.size(i), "residual must have y's shape");
    result.residual_dtype = dtype_of(*residual, "residual");
  }
  return result;
}

// Without entries, whose number the device knows.
template <class Array>
NextNorm next_norm_call(std::int64_t groups, double eps, std::int64_t channels, std::int64_t images, Array& counters,
                        Array& statistics) {
  require(groups > 0 && channels % groups == 0, channels, " channels do not divide into ", groups, " groups");
  require(counters.numel() >= images, "there are ", counters.numel(), " counters for ", images, " images");
  return {static_cast<std::int32_t>(groups), static_cast<float>(eps), nullptr, write<int>(counters),
          write<float>(statistics)};
}

}  // namespace resshift::bindings

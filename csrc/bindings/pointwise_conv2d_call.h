// The arguments of pointwise_conv2d on GPUs, from tensors.
#pragma once

#include "../common/pointwise_conv2d.h"
#include "group_norm_call.h"
#include "result_call.h"

namespace resshift::bindings {

// Without normalization and statistics; x and the result y are channels-last, and the weight has x's dtype.
template <class Array>
PointwiseConv2d pointwise_conv2d_call(const Array& x, const Array& weight, const std::optional<Array>& bias,
                                      const std::optional<Array>& residual, Array& y) {
  const Dtype dtype = dtype_of(x, "x");
  check_device(weight, x, "weight");
  require(x.size(1) < (std::int64_t{1} << 30), "x has 2^30 channels or more");
  require(weight.dim() == 2 && weight.size(0) > 0 && weight.size(1) == x.size(1), "weight must be [O, C] to match x");
  require(dtype_of(weight, "weight") == dtype, "weight must have x's dtype");
  PointwiseConv2d call{};
  call.x = read<void>(x);
  call.weight = read<void>(weight);
  call.images = x.size(0);
  call.pixels = x.size(2) * x.size(3);
  call.channels = static_cast<std::int32_t>(x.size(1));
  call.result = result_call(y, dtype, weight.size(0), bias, residual);
  return call;
}

// The parameters of a normalization.
template <class Array>
struct NormParameters {
  std::int64_t groups;
  std::optional<Array> weight, bias;
};

// Add the normalization, whose statistics [B, 2, groups] are there.
template <class Array>
void set_normalization(PointwiseConv2d& call, const NormParameters<Array>& norm, const Array& x,
                       const Array& statistics) {
  require(norm.groups > 0 && x.size(1) % norm.groups == 0, x.size(1), " channels do not divide into ", norm.groups,
          " groups");
  require(norm.weight && norm.bias, "a normalization needs norm_weight and norm_bias");
  check_device(statistics, x, "statistics");
  require(dtype_of(statistics, "statistics") == Dtype::kFloat32, "statistics must be float32");
  require(statistics.dim() == 3 && statistics.size(0) == x.size(0) && statistics.size(1) == 2 &&
              statistics.size(2) == norm.groups,
          "statistics must be [B, 2, groups]");
  call.groups = static_cast<std::int32_t>(norm.groups);
  call.statistics = read<float>(statistics);
  call.norm_weight = channels_of(*norm.weight, x, x.size(1), false, "norm_weight");
  call.norm_bias = channels_of(*norm.bias, x, x.size(1), false, "norm_bias");
}

}  // namespace resshift::bindings

// 1×1 convolution of CUDA tensors; the statistics of its normalization are given.
#include "../cuda/pointwise_conv2d.h"

#include "cuda.h"
#include "pointwise_conv2d_call.h"

namespace resshift::bindings {
namespace {

// The operator's arguments, but for those of the result's statistics.
struct Given {
  Tensor x, weight;
  OptionalTensor bias, residual;
  NormParameters<Tensor> norm;
  OptionalTensor statistics;
};

Tensor run(const Given& given, NextStatistics& next) {
  STD_TORCH_CHECK(given.x.dim() == 4 && given.x.numel() > 0, "x must be [B, C, H, W] and not empty");
  const OnCuda device(given.x);
  check_memory(given.x, "x");
  const Tensor x = readable(given.x, MemoryFormat::ChannelsLast);
  const Tensor weight = readable_factors(given.weight, x, "weight");
  STD_TORCH_CHECK(weight.dim() == 2, "weight must be [O, C]");
  const OptionalTensor bias = readable(given.bias, "bias", MemoryFormat::Contiguous);
  const OptionalTensor residual = readable(given.residual, "residual", MemoryFormat::ChannelsLast);
  Tensor y = empty_channels_last(x, weight.size(0), x.size(2), x.size(3));
  PointwiseConv2d call = pointwise_conv2d_call(x, weight, bias, residual, y);
  STD_TORCH_CHECK(given.norm.groups >= 0, "num_groups must not be negative, got ", given.norm.groups);
  OptionalTensor statistics;
  if (given.norm.groups) {
    STD_TORCH_CHECK(given.statistics.has_value(), "a normalization needs statistics");
    check_memory(*given.statistics, "statistics");
    statistics = readable(*given.statistics);
    set_normalization(call, given.norm, x, *statistics);
  }
  STD_TORCH_CHECK(cuda::pointwise_conv2d_supported(call), "x must have at most ", cuda::kMostNormalized,
                  " channels if it is normalized, and the blocks be no more than one launch can have");
  call.next = next.call(weight.size(0), x.size(0));
  next.set_scratch(call.next, x, cuda::pointwise_conv2d_scratch(call));
  OnCuda::check(cuda::pointwise_conv2d(call, device.stream()));
  return y;
}

Tensor pointwise_conv2d(Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor residual, int64_t num_groups,
                        OptionalTensor norm_weight, OptionalTensor norm_bias, double /* eps */,
                        OptionalTensor statistics) {
  NextStatistics none;
  return run({x, weight, bias, residual, {num_groups, norm_weight, norm_bias}, statistics}, none);
}

std::tuple<Tensor, Tensor> pointwise_conv2d_statistics(Tensor x, Tensor weight, OptionalTensor bias,
                                                       OptionalTensor residual, int64_t num_groups,
                                                       OptionalTensor norm_weight, OptionalTensor norm_bias,
                                                       double /* eps */, OptionalTensor statistics, int64_t next_groups,
                                                       double next_eps, Tensor counters) {
  STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0, "x must be [B, C, H, W] and not empty");
  NextStatistics next(next_groups, next_eps, counters, x);
  const Tensor y = run({x, weight, bias, residual, {num_groups, norm_weight, norm_bias}, statistics}, next);
  return {y, next.statistics()};
}

}  // namespace

// The schemas are those of `torch.ops.resshift_fast`, but for the counters.
STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cuda, library) {
  library.def(
      "pointwise_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int num_groups, Tensor? norm_weight, "
      "Tensor? norm_bias, float eps, Tensor? statistics) -> Tensor");
  library.def(
      "pointwise_conv2d_statistics(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int num_groups, "
      "Tensor? norm_weight, Tensor? norm_bias, float eps, Tensor? statistics, int next_groups, float next_eps, "
      "Tensor(a!) counters) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cuda, RSF_CUDA_KEY, library) {
  library.impl("pointwise_conv2d", TORCH_BOX(&pointwise_conv2d));
  library.impl("pointwise_conv2d_statistics", TORCH_BOX(&pointwise_conv2d_statistics));
}

}  // namespace resshift::bindings

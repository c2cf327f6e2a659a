// 1×1 convolution of CPU tensors.
#include "pointwise_conv2d.h"

namespace resshift::bindings {
namespace {

using namespace resshift::cpu;

// Every thread takes some pixels, which meet the whole weight, packed before.
void run_by_pixels(const PointwiseConv2d& call) {
  const Workspace packed(packed_size(call, call.out_channels));
  pack_for_all(call, packed.data());
  const auto compute = RSF_KERNEL(pointwise_conv2d);
  const int64_t grain = pointwise_grain(call.channels * call.out_channels);
  parallel_for(0, call.pixels, grain, [&](int64_t begin, int64_t end) {
    const Workspace scratch(scratch_size(call));
    compute(slice(call, begin, end), 0, call.out_channels, packed.data(), scratch.data());
  });
}

Tensor pointwise_conv2d(Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor residual,
                        OptionalTensor normalization) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 4 && x.numel() > 0, "x must be [B, C, H, W] on the CPU and not empty");
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) > 0, "weight must be [O, C] and not empty");
  const int64_t channels = x.size(1), out_channels = weight.size(0);
  const Tensor image = channels_last(x), factors = parameter(weight, {out_channels, channels}, "weight");
  Tensor y = torch::stable::empty({x.size(0), out_channels, x.size(2), x.size(3)}, x.scalar_type(), std::nullopt,
                                  x.device(), std::nullopt, MemoryFormat::ChannelsLast);
  OptionalTensor biases, added, statistics;
  if (bias) biases = parameter(*bias, {out_channels}, "bias");
  if (normalization) statistics = normalization_of(*normalization, x);
  if (residual) {
    check_like(*residual, y, "residual");
    added = channels_last(*residual);
    STD_TORCH_CHECK(dtype_of(*added, "residual") == Dtype::kFloat32 || added->scalar_type() == x.scalar_type(),
                    "residual must be float32 or have x's dtype");
  }
  PointwiseConv2d call{};
  call.x = image.const_data_ptr();
  call.weight = factors.const_data_ptr();
  call.bias = pointer(biases);
  call.normalization = static_cast<const float*>(pointer(statistics));
  call.residual = pointer(added);
  call.y = y.mutable_data_ptr();
  call.dtype = call.y_dtype = dtype_of(x, "x");
  call.weight_dtype = dtype_of(factors, "weight");
  call.bias_dtype = biases ? dtype_of(*biases, "bias") : call.dtype;
  call.residual_dtype = added ? dtype_of(*added, "residual") : call.dtype;
  call.image_pixels = x.size(2) * x.size(3);
  call.pixels = x.size(0) * call.image_pixels;
  call.channels = channels;
  call.out_channels = out_channels;
  if (by_columns(call.pixels, out_channels)) {
    run_by_columns(call);
  } else {
    run_by_pixels(call);
  }
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cpu, library) {
  library.def(
      "pointwise_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? normalization) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cpu, CPU, library) {
  library.impl("pointwise_conv2d", TORCH_BOX(&pointwise_conv2d));
}

}  // namespace resshift::bindings

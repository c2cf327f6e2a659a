// 1×1 convolution of CPU tensors.
#include "../cpu/pointwise_conv2d.h"

#include "cpu.h"

namespace resshift::bindings {
namespace {

Tensor pointwise_conv2d(Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor residual,
                        OptionalTensor normalization) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 4 && x.numel() > 0, "x must be [B, C, H, W] on the CPU and not empty");
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) > 0, "weight must be [O, C] and not empty");
  const int64_t channels = x.size(1), out_channels = weight.size(0);
  const Tensor image = channels_last(x), factors = parameter(weight, {out_channels, channels}, "weight");
  Tensor y = empty_channels_last(x, out_channels, x.size(2), x.size(3));
  OptionalTensor biases, added, statistics;
  if (bias) biases = parameter(*bias, {out_channels}, "bias");
  if (normalization) statistics = normalization_of(*normalization, x);
  if (residual) {
    check_like(*residual, y, "residual");
    added = channels_last(*residual);
    STD_TORCH_CHECK(dtype_of(*added, "residual") == Dtype::kFloat32 || added->scalar_type() == x.scalar_type(),
                    "residual must be float32 or have x's dtype");
  }
  cpu::PointwiseConv2d call{};
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
  cpu::pointwise_conv2d(call);
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

// 3×3 convolution of CPU tensors.
#include "../cpu/conv2d.h"

#include "../cpu/workspace.h"
#include "cpu.h"

namespace resshift::bindings {
namespace {

using cpu::Conv2d;

// The sizes of x in a call.
Conv2d sizes_of(const Tensor& x, int64_t padding) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 4 && x.numel() > 0, "x must be [B, C, H, W] on the CPU and not empty");
  STD_TORCH_CHECK(padding >= 0 && padding <= 1 << 20, "padding must be 0 to 1048576");
  Conv2d call{};
  call.batch = x.size(0);
  call.channels = x.size(1);
  call.height = x.size(2);
  call.width = x.size(3);
  call.padding = padding;
  call.dtype = dtype_of(x, "x");
  return call;
}

Tensor conv2d(Tensor x, Tensor weight, OptionalTensor bias, int64_t padding, OptionalTensor normalization, bool silu,
              OptionalTensor residual, bool upsample, int64_t tile) {
  Conv2d call = sizes_of(x, padding);
  STD_TORCH_CHECK(tile == 4 || tile == 6 || tile == 8, "tile must be 4, 6 or 8");
  STD_TORCH_CHECK(weight.is_cpu() && weight.dim() == 4 && weight.size(0) > 0 && weight.size(1) == call.channels &&
                      weight.size(2) == 3 && weight.size(3) == 3,
                  "weight must be [O, C, 3, 3] on the CPU");
  call.out_channels = weight.size(0);
  STD_TORCH_CHECK((call.out_channels == 1 || weight.stride(0) == 1) && weight.stride(2) == 3 * weight.stride(3),
                  "weight must lie in memory with output channels last and taps in order");
  call.upsample = upsample;
  call.silu = silu;
  STD_TORCH_CHECK(call.out_height() > 0 && call.out_width() > 0, "the image is smaller than the kernel");
  const Tensor image = channels_last(x);
  Tensor y = empty_channels_last(x, call.out_channels, call.out_height(), call.out_width());
  cpu::advise_huge_pages(y.mutable_data_ptr(), static_cast<std::size_t>(y.numel()) * y.element_size());
  OptionalTensor biases, statistics, added;
  if (bias) biases = flat(*bias, ScalarType::Float, call.out_channels, x, "bias");
  if (normalization) statistics = normalization_of(*normalization, x);
  if (residual) {
    check_like(*residual, y, "residual");
    STD_TORCH_CHECK(residual->scalar_type() == x.scalar_type(), "residual must have x's dtype");
    added = channels_last(*residual);
  }
  call.x = image.const_data_ptr();
  call.weight = weight.const_data_ptr();
  call.bias = static_cast<const float*>(pointer(biases));
  call.normalization = static_cast<const float*>(pointer(statistics));
  call.residual = pointer(added);
  call.y = y.mutable_data_ptr();
  call.weight_dtype = dtype_of(weight, "weight");
  call.tap_stride = weight.stride(3);
  call.channel_stride = weight.stride(1);
  cpu::conv2d(call, static_cast<int>(tile));
  return y;
}

Tensor conv2d_weight_gradient(Tensor dy, Tensor x, int64_t padding) {
  Conv2d call = sizes_of(x, padding);
  STD_TORCH_CHECK(dy.is_cpu() && dy.dim() == 4 && dy.numel() > 0 && dy.size(0) == call.batch &&
                      dy.size(2) == call.out_height() && dy.size(3) == call.out_width() &&
                      dy.scalar_type() == x.scalar_type(),
                  "dy must be shaped like the result of x, on the CPU and of x's dtype");
  call.out_channels = dy.size(1);
  const Tensor image = channels_last(x), gradient = channels_last(dy);
  call.x = image.const_data_ptr();
  call.y = const_cast<void*>(gradient.const_data_ptr());  // only read
  const std::vector<int64_t> size{3, 3, call.channels, call.out_channels};
  Tensor taps = torch::stable::empty(size, ScalarType::Float, std::nullopt, x.device());
  cpu::conv2d_weight_gradient(call, static_cast<float*>(taps.mutable_data_ptr()));
  return taps;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cpu, library) {
  library.def(
      "conv2d(Tensor x, Tensor weight, Tensor? bias, int padding, Tensor? normalization, bool silu, Tensor? residual, "
      "bool upsample, int tile) -> Tensor");
  library.def("conv2d_weight_gradient(Tensor dy, Tensor x, int padding) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cpu, CPU, library) {
  library.impl("conv2d", TORCH_BOX(&conv2d));
  library.impl("conv2d_weight_gradient", TORCH_BOX(&conv2d_weight_gradient));
}

}  // namespace resshift::bindings

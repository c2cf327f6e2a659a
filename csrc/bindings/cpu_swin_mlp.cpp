// The feed-forward half of a Swin block on CPU tensors: two 1×1 convolutions, between which nothing leaves the cache.
#include "pointwise_conv2d.h"

namespace resshift::bindings {
namespace {

using namespace resshift::cpu;

// The images after the first convolution, as the second one multiplies them.
Dtype hidden_dtype(Dtype dtype) {
  return dtype == Dtype::kBFloat16 && isa() == Isa::kAvx512Bf16 ? dtype : Dtype::kFloat32;
}

// Every thread takes some pixels, and these in blocks through both convolutions.
void run_by_pixels(const PointwiseConv2d& first, const PointwiseConv2d& second) {
  const Workspace weights(packed_size(first, first.out_channels) + packed_size(second, second.out_channels));
  float* const first_packed = weights.data();
  float* const second_packed = first_packed + packed_size(first, first.out_channels);
  pack_for_all(first, first_packed);
  pack_for_all(second, second_packed);
  const auto compute = RSF_KERNEL(pointwise_conv2d);
  const int64_t grain = pointwise_grain(2 * first.channels * first.out_channels);
  parallel_for(0, first.pixels, grain, [&](int64_t begin, int64_t end) {
    const int64_t hidden_size = kBlockPixels * first.out_channels;
    const Workspace scratch(hidden_size + std::max(scratch_size(first), scratch_size(second)));
    float* const rest = scratch.data() + hidden_size;
    for (int64_t pixel = begin; pixel < end; pixel += kBlockPixels) {
      const int64_t stop = std::min(pixel + kBlockPixels, end);
      PointwiseConv2d in = slice(first, pixel, stop), out = slice(second, pixel, stop);
      in.y = scratch.data();
      out.x = scratch.data();
      compute(in, 0, in.out_channels, first_packed, rest);
      compute(out, 0, out.out_channels, second_packed, rest);
    }
  });
}

void run(PointwiseConv2d first, PointwiseConv2d second) {
  if (!by_columns(first.pixels, first.out_channels) || !by_columns(second.pixels, second.out_channels)) {
    return run_by_pixels(first, second);
  }
  const Workspace hidden(first.pixels * first.out_channels);
  first.y = hidden.data();
  second.x = hidden.data();
  run_by_columns(first);
  run_by_columns(second);
}

PointwiseConv2d layer(const Tensor& weight, const Tensor& bias) {
  PointwiseConv2d call{};
  call.weight = weight.const_data_ptr();
  call.bias = bias.const_data_ptr();
  call.weight_dtype = dtype_of(weight, "a weight");
  call.bias_dtype = dtype_of(bias, "a bias");
  call.out_channels = weight.size(0);
  call.channels = weight.size(1);
  return call;
}

Tensor swin_mlp(Tensor x, Tensor normalization, Tensor w1, Tensor b1, Tensor w2, Tensor b2) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 4 && x.numel() > 0, "x must be [B, C, H, W] on the CPU and not empty");
  STD_TORCH_CHECK(w1.dim() == 2 && w1.size(0) > 0, "w1 must be [hidden, C] and not empty");
  const int64_t channels = x.size(1), hidden = w1.size(0);
  const Tensor image = channels_last(x), statistics = normalization_of(normalization, x);
  const Tensor weights[] = {parameter(w1, {hidden, channels}, "w1"), parameter(w2, {channels, hidden}, "w2")};
  const Tensor biases[] = {parameter(b1, {hidden}, "b1"), parameter(b2, {channels}, "b2")};
  ImageLike y(x);
  PointwiseConv2d first = layer(weights[0], biases[0]), second = layer(weights[1], biases[1]);
  first.x = second.residual = image.const_data_ptr();
  first.normalization = static_cast<const float*>(statistics.const_data_ptr());
  first.gelu = true;
  first.dtype = second.residual_dtype = second.y_dtype = dtype_of(x, "x");
  first.y_dtype = second.dtype = hidden_dtype(first.dtype);
  second.y = y.data();
  first.image_pixels = second.image_pixels = x.size(2) * x.size(3);
  first.pixels = second.pixels = x.size(0) * first.image_pixels;
  run(first, second);
  return y.finished();
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cpu, library) {
  library.def("swin_mlp(Tensor x, Tensor normalization, Tensor w1, Tensor b1, Tensor w2, Tensor b2) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cpu, CPU, library) { library.impl("swin_mlp", TORCH_BOX(&swin_mlp)); }

}  // namespace resshift::bindings

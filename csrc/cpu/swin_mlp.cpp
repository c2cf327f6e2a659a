// Two 1×1 convolutions, by blocks of pixels whose hidden activations stay in the cache.
#include "swin_mlp.h"

#include "pointwise_conv2d_threads.h"

namespace resshift::cpu {
namespace {

// Of the hidden activations, as the second convolution multiplies them.
Dtype hidden_dtype(Dtype dtype) {
  return dtype == Dtype::kBFloat16 && isa() == Isa::avx512_bf16 ? dtype : Dtype::kFloat32;
}

// Every thread takes some pixels, and a block of them at a time through both convolutions.
void run_by_pixels(const PointwiseConv2d& first, const PointwiseConv2d& second) {
  const Workspace weights(packed_size(first, first.out_channels) + packed_size(second, second.out_channels));
  float* const first_packed = weights.data();
  float* const second_packed = first_packed + packed_size(first, first.out_channels);
  pack_for_all(first, first_packed);
  pack_for_all(second, second_packed);
  const auto compute = RSF_KERNEL(pointwise_conv2d);
  const std::int64_t grain = pixel_grain(2 * first.channels * first.out_channels);
  parallel_for(0, first.pixels, grain, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t hidden_size = kBlockPixels * first.out_channels;
    const Workspace scratch(hidden_size + std::max(scratch_size(first), scratch_size(second)));
    float* const rest = scratch.data() + hidden_size;
    for (std::int64_t pixel = begin; pixel < end; pixel += kBlockPixels) {
      const std::int64_t stop = std::min(pixel + kBlockPixels, end);
      PointwiseConv2d in = slice(first, pixel, stop), out = slice(second, pixel, stop);
      in.y = scratch.data();
      out.x = scratch.data();
      compute(in, 0, in.out_channels, first_packed, rest);
      compute(out, 0, out.out_channels, second_packed, rest);
    }
  });
}

}  // namespace

void swin_mlp(const SwinMlp& call) {
  PointwiseConv2d first{}, second{};
  first.x = second.residual = call.x;
  first.dtype = second.residual_dtype = second.y_dtype = call.dtype;
  first.normalization = call.normalization;
  first.weight = call.w1;
  first.weight_dtype = call.w1_dtype;
  first.bias = call.b1;
  first.bias_dtype = call.b1_dtype;
  first.gelu = true;
  first.y_dtype = second.dtype = hidden_dtype(call.dtype);
  second.weight = call.w2;
  second.weight_dtype = call.w2_dtype;
  second.bias = call.b2;
  second.bias_dtype = call.b2_dtype;
  second.y = call.y;
  first.channels = second.out_channels = call.channels;
  first.out_channels = second.channels = call.hidden;
  first.image_pixels = second.image_pixels = call.pixels;
  first.pixels = second.pixels = call.batch * call.pixels;
  const auto has_columns = [](const PointwiseConv2d& half) {
    return by_columns(half.pixels, half.channels, half.out_channels);
  };
  if (!has_columns(first) || !has_columns(second)) {
    return run_by_pixels(first, second);
  }
  const Workspace hidden(first.pixels * first.out_channels);
  first.y = hidden.data();
  second.x = hidden.data();
  run_by_columns(first);
  run_by_columns(second);
}

}  // namespace resshift::cpu

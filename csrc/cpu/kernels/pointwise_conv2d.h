// 1×1 convolution of channels-last images: the product of their pixels, normalized as they are read, with a weight.
#pragma once

#include <cstdint>

#include "../../common/scalar.h"
#include "../isa.h"

namespace resshift::cpu {

// One call, for `pixels` pixels of a batch from pixel `first` on, to which x, residual and y point.
struct PointwiseConv2d {
  const void* x;                                                   // [pixels, C]
  const void* weight;                                              // [O, C]
  const void* bias;                                                // [O], or null
  const float* normalization;                                      // [B, 3, C]: mean, multiplier and offset, or null
  const void* residual;                                            // [pixels, O], or null
  void* y;                                                         // [pixels, O]
  Dtype dtype, weight_dtype, bias_dtype, residual_dtype, y_dtype;  // the first is x's
  bool gelu;  // of the sum of product and bias; there is no residual then
  std::int64_t pixels, first, image_pixels, channels, out_channels;
};

constexpr std::int64_t kBlockPixels = 96;  // that meet all columns before others do
constexpr std::int64_t kColumnUnit = 16;   // output channels that can be packed apart from others
constexpr std::int64_t kWidestColumns = 32;

RSF_INLINE std::int64_t size_of(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

// The same call for pixels [begin, end) of its own.
RSF_INLINE PointwiseConv2d slice(const PointwiseConv2d& call, std::int64_t begin, std::int64_t end) {
  PointwiseConv2d part = call;
  const std::int64_t out = begin * call.out_channels;
  part.x = static_cast<const char*>(call.x) + begin * call.channels * size_of(call.dtype);
  part.y = static_cast<char*>(call.y) + out * size_of(call.y_dtype);
  if (call.residual) part.residual = static_cast<const char*>(call.residual) + out * size_of(call.residual_dtype);
  part.pixels = end - begin;
  part.first = call.first + begin;
  return part;
}

// Whether twelve rows of so many units, 4 bytes each, share the same few lines of a cache.
RSF_INLINE bool crowded(std::int64_t stride) { return stride % 512 == 0; }

// Units from a row of normalized pixels to the next.
RSF_INLINE std::int64_t row_stride(std::int64_t units) {
  const std::int64_t padded = (units + 15) / 16 * 16;
  return crowded(padded) ? padded + 16 : padded;
}

// Floats of the packed weight of so many output channels, and of the memory that a thread works in.
RSF_INLINE std::int64_t packed_size(const PointwiseConv2d& call, std::int64_t out_channels) {
  return (out_channels + kWidestColumns - 1) / kWidestColumns * kWidestColumns * call.channels;
}
RSF_INLINE std::int64_t scratch_size(const PointwiseConv2d& call) {
  return kBlockPixels * (row_stride(call.channels) + kWidestColumns);
}

RSF_FOR_EVERY_ISA(
    // Pack the weight of output channels [begin, end) into a packed weight that starts with channel `first`, a multiple
    // of kColumnUnit; `begin` lies a multiple of kWidestColumns behind it.
    void pack_weight(const PointwiseConv2d& call, std::int64_t first, std::int64_t begin, std::int64_t end,
                     float* packed);

    // Compute output channels [begin, end) of all pixels with their weight, packed from `begin` on.
    void pointwise_conv2d(const PointwiseConv2d& call, std::int64_t begin, std::int64_t end, const float* packed,
                          float* scratch);)

}  // namespace resshift::cpu

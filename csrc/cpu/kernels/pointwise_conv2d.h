// Stages of 1×1 convolution, each for some pixels and output channels of a call: the product of pixels, normalized as
// they are read, with a packed weight.
#pragma once

#include "../../common/integers.h"
#include "../isa.h"
#include "../pointwise_conv2d.h"

namespace resshift::cpu {

constexpr std::int64_t kBlockPixels = 96;  // that are multiplied with all columns while they are in the cache
constexpr std::int64_t kColumnUnit = 16;   // output channels that can be packed by themselves
constexpr std::int64_t kWidestColumns = 32;

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

// Whether rows that far apart, in units of 4 bytes, compete for the same few lines of a cache.
RSF_INLINE bool crowded(std::int64_t stride) { return stride % 512 == 0; }

// Units from a row of normalized pixels to the next.
RSF_INLINE std::int64_t row_stride(std::int64_t units) {
  const std::int64_t padded = round_up(units, 16);
  return crowded(padded) ? padded + 16 : padded;
}

// Floats of the packed weight of so many output channels, and of a thread's scratch memory.
RSF_INLINE std::int64_t packed_size(const PointwiseConv2d& call, std::int64_t out_channels) {
  return round_up(out_channels, kWidestColumns) * call.channels;
}
RSF_INLINE std::int64_t scratch_size(const PointwiseConv2d& call) {
  return kBlockPixels * (row_stride(call.channels) + kWidestColumns);
}

RSF_FOR_EVERY_ISA(
    // Pack the weight of output channels [begin, end) into a packed weight that starts with channel `first`, a multiple
    // of kColumnUnit; `begin` is a multiple of kWidestColumns after it.
    void pack_weight(const PointwiseConv2d& call, std::int64_t first, std::int64_t begin, std::int64_t end,
                     float* packed);

    // Compute output channels [begin, end) of all pixels with their weight, packed from `begin` on.
    void pointwise_conv2d(const PointwiseConv2d& call, std::int64_t begin, std::int64_t end, const float* packed,
                          float* scratch);)

}  // namespace resshift::cpu

// How threads share 1×1 convolutions, alone and in pairs.
#pragma once

#include <algorithm>

#include "kernels/pointwise_conv2d.h"
#include "parallel.h"
#include "workspace.h"

namespace resshift::cpu {

// Grain of a loop whose iterations take so many multiplications. A thread gets at least 2¹⁸ of them: handing over fewer
// costs more than they do.
inline std::int64_t pointwise_grain(std::int64_t multiplications) {
  return (1 << 18) / std::max<std::int64_t>(1, multiplications) + 1;
}

// The same for a loop over pixels, of which kernels take 12, 6 or 4 at a time.
inline std::int64_t pixel_grain(std::int64_t multiplications) { return round_up(pointwise_grain(multiplications), 24); }

// Whether threads should share the output channels rather than the pixels: every thread then reads all pixels, but the
// weight is read and packed only once. They should if all have about as many, or if of the pixels some would get none.
inline bool by_columns(std::int64_t pixels, std::int64_t channels, std::int64_t out_channels) {
  const std::int64_t threads = get_num_threads(), parts = divide_up(out_channels, kColumnUnit);
  if (threads == 1 || pixels > out_channels) return false;
  if (round_up(parts, threads) * 10 <= parts * 11) return true;
  const std::int64_t by_pixels = divide_up(pixels, pixel_grain(channels * out_channels));
  return by_pixels < threads && divide_up(parts, threads) * by_pixels < parts;
}

// Every thread packs the weight of some output channels and computes them for all pixels.
inline void run_by_columns(const PointwiseConv2d& call) {
  const auto pack = RSF_KERNEL(pack_weight);
  const auto compute = RSF_KERNEL(pointwise_conv2d);
  const std::int64_t grain = pointwise_grain(call.pixels * call.channels * kColumnUnit);
  parallel_for(0, divide_up(call.out_channels, kColumnUnit), grain, [&](std::int64_t first, std::int64_t last) {
    const std::int64_t begin = first * kColumnUnit, end = std::min(last * kColumnUnit, call.out_channels);
    const Workspace scratch(scratch_size(call) + packed_size(call, end - begin));
    float* const packed = scratch.data() + scratch_size(call);
    pack(call, begin, begin, end, packed);
    compute(call, begin, end, packed, scratch.data());
  });
}

// Pack a whole weight, with all threads.
inline void pack_for_all(const PointwiseConv2d& call, float* packed) {
  const auto pack = RSF_KERNEL(pack_weight);
  const std::int64_t grain = pointwise_grain(8 * kWidestColumns * call.channels);
  parallel_for(0, divide_up(call.out_channels, kWidestColumns), grain, [&](std::int64_t begin, std::int64_t end) {
    pack(call, 0, begin * kWidestColumns, std::min(end * kWidestColumns, call.out_channels), packed);
  });
}

}  // namespace resshift::cpu

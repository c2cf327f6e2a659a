// How threads share what convolutions have in common.
#pragma once

#include <algorithm>

#include "kernels/conv2d.h"
#include "parallel.h"

namespace resshift::cpu {

constexpr std::int64_t kOwnChunk = 16;      // tiles that one thread transforms for itself: they fit its level-2 cache
constexpr std::int64_t kLeastChunk = 4;     // of them, where there are many threads
constexpr std::int64_t kChannelGrain = 16;  // whose weights a thread transforms at least

// Tiles that a thread transforms for itself and multiplies with all weights: fewer where threads would get none.
inline std::int64_t own_chunk(const WinogradPlan& whole) {
  const std::int64_t threads = get_num_threads();
  std::int64_t chunk = kOwnChunk;
  while (chunk > kLeastChunk && divide_up(whole.tiles, chunk) < threads) chunk /= 2;
  return chunk;
}

// Transform all weights, u [column blocks, slices, points, slice, columns].
inline void transform_weights(const Conv2d& call, const WinogradPlan& plan, float* u) {
  const auto transform = RSF_KERNEL(winograd_weights);
  parallel_for(0, plan.column_blocks * call.channels, kChannelGrain, [&](std::int64_t begin, std::int64_t end) {
    while (begin < end) {
      const std::int64_t block = begin / call.channels, channel = begin % call.channels, slice = channel / plan.slice;
      const std::int64_t stop = std::min({channel + end - begin, call.channels, (slice + 1) * plan.slice});
      float* const whole = u + (block * plan.slices + slice) * plan.weight_size();
      transform(call, plan, block, channel, stop, whole + channel % plan.slice * plan.columns);
      begin += stop - channel;
    }
  });
}

}  // namespace resshift::cpu

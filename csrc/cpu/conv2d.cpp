// How threads share a convolution: what stays in their caches, and what all of them read.
#include "conv2d.h"

#include <algorithm>

#include "conv2d_threads.h"
#include "kernels/conv2d.h"
#include "parallel.h"
#include "workspace.h"

namespace resshift::cpu {
namespace {

constexpr std::int64_t kShared = 7 << 20;      // most floats that few threads share, unless one chunk is larger
constexpr std::int64_t kSharedEach = 1 << 19;  // and for each of many: where they share less, some have nothing to do
constexpr std::int64_t kSlice = 64;            // channels whose transformed weights fit a level-2 cache
constexpr std::int64_t kGradientChunk = 64;    // tiles whose transforms stay in the caches until they are multiplied
constexpr std::int64_t kTransformTiles = 5;    // that are multiplied in the time of transforming the weights
constexpr std::int64_t kTileGrain = 2;
constexpr std::int64_t kLine = 64;  // bytes of a cache line

// Read a part of the weights in order, so that they are in the level-3 cache when column blocks read them with large
// strides: memory delivers scattered lines at a tenth of its rate.
void prefetch_weights(const Conv2d& call, std::int64_t part, std::int64_t parts) {
  // Up to the last element, and no further: behind it a slice of a larger weight may end the allocation.
  const std::int64_t last = 8 * call.tap_stride + (call.channels - 1) * call.channel_stride + call.out_channels;
  const std::int64_t bytes = last * size_of(call.weight_dtype);
  const auto* weight = static_cast<const volatile char*>(call.weight);
  for (std::int64_t i = bytes * part / parts; i < bytes * (part + 1) / parts; i += kLine) (void)weight[i];
}

// For large weights: tiles are transformed first, some chunks at a time, and shared; every thread transforms the
// weights of its own column blocks and multiplies them with all of those tiles.
void run_with_shared_tiles(const Conv2d& call, const WinogradPlan& plan) {
  const std::int64_t threads = get_num_threads(), shared = std::max(kShared, threads * kSharedEach);
  const std::int64_t together = std::clamp<std::int64_t>(shared / plan.input_size(), 1, plan.chunks());
  const Workspace tiles(together * plan.input_size());
  parallel_for(0, threads, 1, [&](std::int64_t begin, std::int64_t end) {
    for (; begin < end; ++begin) prefetch_weights(call, begin, threads);
  });
  const auto transform = RSF_KERNEL(winograd_input);
  const auto weights = RSF_KERNEL(winograd_weights);
  const auto multiply = RSF_KERNEL(winograd_multiply);
  const auto output = RSF_KERNEL(winograd_output);
  for (std::int64_t first = 0; first < plan.chunks(); first += together) {
    const std::int64_t chunks = std::min(together, plan.chunks() - first);
    auto tiles_of = [&](std::int64_t chunk) { return tiles.data() + (chunk - first) * plan.input_size(); };
    const std::int64_t last_tile = std::min((first + chunks) * plan.chunk, plan.tiles);
    parallel_for(first * plan.chunk, last_tile, kTileGrain, [&](std::int64_t begin, std::int64_t end) {
      while (begin < end) {
        const std::int64_t chunk = begin / plan.chunk, stop = std::min(end, (chunk + 1) * plan.chunk);
        transform(call, plan, begin, stop, tiles_of(chunk));
        begin = stop;
      }
    });
    // Where there are enough blocks, one thread transforms the weights of each.
    const std::int64_t grain = plan.column_blocks >= 8 * threads ? chunks : 1;
    parallel_for(0, plan.column_blocks * chunks, grain, [&](std::int64_t begin, std::int64_t end) {
      const Workspace scratch(plan.weight_size() + plan.product_size());
      float *u = scratch.data(), *product = u + plan.weight_size();
      for (std::int64_t item = begin; item < end; ++item) {
        const std::int64_t block = item / chunks, chunk = first + item % chunks;
        const bool transformed = plan.slices == 1 && item > begin && chunk > first;
        for (std::int64_t channel = 0; channel < call.channels; channel += plan.slice) {
          const std::int64_t stop = std::min(channel + plan.slice, call.channels);
          if (!transformed) weights(call, plan, block, channel, stop, u);
          multiply(call, plan, {chunk, block, channel, stop, tiles_of(chunk), u, product});
        }
        output(call, plan, chunk, block, product);
      }
    });
  }
}

// For small weights: they are transformed first and shared; every thread transforms its own chunks of tiles and
// multiplies them with all weights.
void run_with_shared_weights(const Conv2d& call, const WinogradPlan& plan) {
  const Workspace weights(plan.column_blocks * plan.weight_size());
  transform_weights(call, plan, weights.data());
  const auto input = RSF_KERNEL(winograd_input);
  const auto multiply = RSF_KERNEL(winograd_multiply);
  const auto output = RSF_KERNEL(winograd_output);
  parallel_for(0, plan.chunks(), 1, [&](std::int64_t begin, std::int64_t end) {
    const Workspace scratch(plan.input_size() + plan.product_size());
    float *v = scratch.data(), *product = v + plan.input_size();
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
      const std::int64_t first = chunk * plan.chunk;
      input(call, plan, first, std::min(first + plan.chunk, plan.tiles), v);
      for (std::int64_t block = 0; block < plan.column_blocks; ++block) {
        const float* u = weights.data() + block * plan.weight_size();
        multiply(call, plan, {chunk, block, 0, call.channels, v, u, product});
        output(call, plan, chunk, block, product);
      }
    }
  });
}

// Tiles that a column block is multiplied with at once: those with which the threads are done first. More of them use
// transformed weights more often, fewer leave less of the threads idle in the last round.
std::int64_t shared_chunk(const WinogradPlan& whole) {
  const std::int64_t threads = get_num_threads();
  std::int64_t chunk = std::min<std::int64_t>(128, whole.tiles), best = chunk, least = INT64_MAX;
  for (;; chunk = (chunk + 1) / 2) {
    const std::int64_t items = whole.column_blocks * divide_up(whole.tiles, chunk);
    const std::int64_t time = divide_up(items, threads) * (chunk + kTransformTiles);
    if (time < least) {
      least = time;
      best = chunk;
    }
    if (chunk <= kLeastChunk) return best;
  }
}

}  // namespace

void conv2d(const Conv2d& call, int tile) {
  const auto plan = RSF_KERNEL(winograd_plan);
  const WinogradPlan whole = plan(call, tile, INT64_MAX, call.channels);
  // Weights can only be shared whole, tiles also in part.
  const std::int64_t all_weights = whole.column_blocks * whole.weight_size();
  if (all_weights < std::min(whole.input_size(), kShared)) {
    return run_with_shared_weights(call, plan(call, tile, own_chunk(whole), call.channels));
  }
  run_with_shared_tiles(call, plan(call, tile, shared_chunk(whole), kSlice));
}

// At every point, the tiles of a chunk of the image are multiplied with those of the result's gradient and summed.
void conv2d_weight_gradient(const Conv2d& call, float* gradient) {
  const WinogradPlan plan = RSF_KERNEL(winograd_plan)(call, 4, kGradientChunk, call.channels);
  const std::int64_t image_tiles = plan.input_size(), block_tiles = plan.product_size(), sums = plan.weight_size();
  const Workspace scratch(image_tiles + plan.column_blocks * (block_tiles + sums));
  float *v = scratch.data(), *w = v + image_tiles, *u = w + plan.column_blocks * block_tiles;
  const auto input = RSF_KERNEL(winograd_input);
  const auto output = RSF_KERNEL(winograd_gradient_tiles);
  const auto multiply = RSF_KERNEL(winograd_gradient_multiply);
  const auto weights = RSF_KERNEL(winograd_gradient_weights);
  for (std::int64_t chunk = 0; chunk < plan.chunks(); ++chunk) {
    const std::int64_t first = chunk * plan.chunk, last = std::min(first + plan.chunk, plan.tiles);
    parallel_for(first, last, kTileGrain, [&](std::int64_t begin, std::int64_t end) {
      input(call, plan, begin, end, v);
      for (std::int64_t block = 0; block < plan.column_blocks; ++block) {
        output(call, plan, block, begin, end, w + block * block_tiles);
      }
    });
    parallel_for(0, plan.column_blocks * plan.points, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t item = begin; item < end; ++item) {
        const std::int64_t block = item / plan.points, point = item % plan.points;
        multiply(call, plan, chunk, block, v + point * plan.input_point,
                 w + block * block_tiles + point * plan.product_point, u + block * sums + point * plan.weight_point);
      }
    });
  }
  parallel_for(0, plan.column_blocks * call.channels, 16, [&](std::int64_t begin, std::int64_t end) {
    while (begin < end) {
      const std::int64_t block = begin / call.channels, stop = std::min(end, (block + 1) * call.channels);
      weights(call, plan, block, begin - block * call.channels, stop - block * call.channels, u + block * sums,
              gradient);
      begin = stop;
    }
  });
}

}  // namespace resshift::cpu

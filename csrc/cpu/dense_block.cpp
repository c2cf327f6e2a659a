// Each convolution of a dense block reads all results before it. Their transformed tiles are kept, so that each is
// transformed once, and no image has to be put together from them.
#include "dense_block.h"

#include "conv2d_threads.h"
#include "workspace.h"

namespace resshift::cpu {
namespace {

constexpr std::int64_t kSlice = 64;  // most channels whose transforms lie together

// A multiple of the growth that divides the channels, so that what is appended lies in one slice.
std::int64_t slice_of(const DenseBlock& block) {
  std::int64_t slice = block.growth;
  while (2 * slice <= kSlice && block.channels % (2 * slice) == 0) slice *= 2;
  return slice;
}

// Convolution i, of all channels so far; it reads them as transformed tiles.
Conv2d convolution(const DenseBlock& block, int i, void* y) {
  const bool last = i == DenseBlock::kConvs - 1;
  Conv2d call{};
  call.batch = block.batch;
  call.height = block.height;
  call.width = block.width;
  call.padding = 1;
  call.channels = block.channels + i * block.growth;
  call.out_channels = last ? block.channels : block.growth;
  call.weight = block.weights[i];
  call.weight_dtype = block.weight_dtypes[i];
  call.tap_stride = call.channels * call.out_channels;
  call.channel_stride = call.out_channels;
  call.bias = block.biases[i];
  call.dtype = block.dtype;
  call.residual = last ? block.x : nullptr;
  call.scale = last ? block.scale : 1;
  call.slope = last ? 1 : block.slope;
  call.y = y;
  return call;
}

}  // namespace

void dense_block(const DenseBlock& block, int tile) {
  const std::int64_t values = block.batch * block.height * block.width * block.growth;
  const std::int64_t image = divide_up(values * size_of(block.dtype), std::int64_t{sizeof(float)});
  const auto make_plan = RSF_KERNEL(winograd_plan);
  const auto input = RSF_KERNEL(winograd_input);
  const auto multiply = RSF_KERNEL(winograd_multiply);
  const auto output = RSF_KERNEL(winograd_output);
  const std::int64_t slice = slice_of(block);
  const Conv2d final = convolution(block, DenseBlock::kConvs - 1, block.y);
  const std::int64_t chunk = own_chunk(make_plan(final, tile, INT64_MAX, slice));
  const WinogradPlan all = make_plan(final, tile, chunk, slice);
  // The last two results, the transformed tiles of all, and the transformed weights of a convolution.
  const std::int64_t transformed = all.chunks() * all.input_size();
  const Workspace memory(2 * image + transformed + all.column_blocks * all.slices * all.weight_size());
  float *const images = memory.data(), *const tiles = images + 2 * image, *const weights = tiles + transformed;
  // What a convolution transforms: x, and then the result before it.
  Conv2d read = final;
  read.x = block.x;
  read.channels = block.channels;
  for (int i = 0; i < DenseBlock::kConvs; ++i) {
    const Conv2d call = i + 1 < DenseBlock::kConvs ? convolution(block, i, images + i % 2 * image) : final;
    const WinogradPlan plan = make_plan(call, tile, chunk, slice);
    transform_weights(call, plan, weights);
    const std::int64_t appended = call.channels - read.channels;  // where the transforms of what is read begin
    const std::int64_t offset = appended / slice * plan.input_slice + appended % slice;
    parallel_for(0, plan.chunks(), 1, [&](std::int64_t begin, std::int64_t end) {
      const Workspace product(plan.product_size());
      for (std::int64_t at = begin; at < end; ++at) {
        float* const v = tiles + at * all.input_size();
        const std::int64_t first = at * plan.chunk, last = first + plan.chunk;
        input(read, plan, first, last < plan.tiles ? last : plan.tiles, v + offset);
        for (std::int64_t column = 0; column < plan.column_blocks; ++column) {
          const float* u = weights + column * plan.slices * plan.weight_size();
          for (std::int64_t channel = 0; channel < call.channels; channel += slice, u += plan.weight_size()) {
            const std::int64_t stop = channel + slice < call.channels ? channel + slice : call.channels;
            multiply(call, plan, {at, column, channel, stop, v, u, product.data()});
          }
          output(call, plan, at, column, product.data());
        }
      }
    });
    read.x = call.y;
    read.channels = block.growth;
  }
}

}  // namespace resshift::cpu

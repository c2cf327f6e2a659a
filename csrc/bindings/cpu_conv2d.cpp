// 3×3 convolution on CPU tensors: checks, the plan of a call, and its threads.
#include "../cpu/kernels/conv2d.h"

#include <algorithm>
#include <cstdint>

#include "channels_last.h"
#include "../cpu/parallel.h"
#include "tensors.h"
#include "../cpu/workspace.h"

namespace resshift::bindings {
namespace {

using namespace resshift::cpu;

constexpr int64_t kOwnChunk = 16;        // tiles of a thread that has its own: they stay in its level-2 cache
constexpr int64_t kShared = 7 << 20;     // floats that all threads have in common, at most, unless one chunk is larger
constexpr int64_t kSlice = 64;           // channels whose transformed weights stay there
constexpr int64_t kGradientChunk = 512;  // tiles whose transforms are held at once
constexpr int64_t kTileGrain = 2;
constexpr int64_t kLine = 64;  // bytes of a cache line

// Read a part of the weights in order, so that they are in the level-3 cache when they are read in columns: memory
// gives lines that lie apart at a tenth of its rate.
void fetch_weights(const Convolution& call, int64_t part, int64_t parts) {
  // Up to the last one, which in a slice of a larger weight is nearer than nine taps' distance to the end of its
  // memory.
  const int64_t last = 8 * call.tap_stride + (call.channels - 1) * call.channel_stride + call.out_channels;
  const int64_t bytes = last * (call.weight_dtype == Dtype::kFloat32 ? 4 : 2);
  const auto* weight = static_cast<const volatile char*>(call.weight);
  for (int64_t i = bytes * part / parts; i < bytes * (part + 1) / parts; i += kLine) (void)weight[i];
}

// Every thread takes column blocks, transforms their weights, and has them meet all tiles of some chunks, transformed
// before.
void run_with_shared_tiles(const Convolution& call, const WinogradPlan& plan) {
  const int64_t together = std::clamp<int64_t>(kShared / plan.input_size(), 1, plan.chunks());
  const Workspace tiles(together * plan.input_size());
  const int64_t threads = torch::stable::get_num_threads();
  parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) fetch_weights(call, begin, threads);
  });
  const auto transform = RSF_KERNEL(winograd_input);
  const auto weights = RSF_KERNEL(winograd_weights);
  const auto multiply = RSF_KERNEL(winograd_multiply);
  const auto output = RSF_KERNEL(winograd_output);
  for (int64_t first = 0; first < plan.chunks(); first += together) {
    const int64_t chunks = std::min(together, plan.chunks() - first);
    auto tiles_of = [&](int64_t chunk) { return tiles.data() + (chunk - first) * plan.input_size(); };
    const int64_t last_tile = std::min((first + chunks) * plan.chunk, plan.tiles);
    parallel_for(first * plan.chunk, last_tile, kTileGrain, [&](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t chunk = begin / plan.chunk, stop = std::min(end, (chunk + 1) * plan.chunk);
        transform(call, plan, begin, stop, tiles_of(chunk));
        begin = stop;
      }
    });
    parallel_for(0, plan.column_blocks * chunks, 1, [&](int64_t begin, int64_t end) {
      const Workspace scratch(plan.weight_size() + plan.product_size());
      float *u = scratch.data(), *product = u + plan.weight_size();
      for (int64_t item = begin; item < end; ++item) {
        const int64_t block = item / chunks, chunk = first + item % chunks;
        const bool has_them = plan.slices == 1 && item > begin && chunk > first;
        for (int64_t channel = 0; channel < call.channels; channel += plan.slice) {
          const int64_t stop = std::min(channel + plan.slice, call.channels);
          if (!has_them) weights(call, plan, block, channel, stop, u);
          multiply(call, plan, chunk, block, channel, stop, tiles_of(chunk), u, product);
        }
        output(call, plan, chunk, block, product);
      }
    });
  }
}

// Every thread takes chunks of tiles, transforms them, and has them meet all weights, transformed before.
void run_with_shared_weights(const Convolution& call, const WinogradPlan& plan) {
  const Workspace weights(plan.column_blocks * plan.weight_size());
  const auto transform = RSF_KERNEL(winograd_weights);
  parallel_for(0, plan.column_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      transform(call, plan, block, 0, call.channels, weights.data() + block * plan.weight_size());
    }
  });
  const auto input = RSF_KERNEL(winograd_input);
  const auto multiply = RSF_KERNEL(winograd_multiply);
  const auto output = RSF_KERNEL(winograd_output);
  parallel_for(0, plan.chunks(), 1, [&](int64_t begin, int64_t end) {
    const Workspace scratch(plan.input_size() + plan.product_size());
    float *v = scratch.data(), *product = v + plan.input_size();
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * plan.chunk;
      input(call, plan, first, std::min(first + plan.chunk, plan.tiles), v);
      for (int64_t block = 0; block < plan.column_blocks; ++block) {
        multiply(call, plan, chunk, block, 0, call.channels, v, weights.data() + block * plan.weight_size(), product);
        output(call, plan, chunk, block, product);
      }
    }
  });
}

// Tiles that meet a column block at once: as many as the weights are worth, but so that no thread is left without work.
int64_t shared_chunk(const WinogradPlan& whole) {
  const int64_t threads = torch::stable::get_num_threads();
  int64_t chunk = std::min<int64_t>(128, whole.tiles);
  auto rounds_up_much = [&](int64_t size) {
    const int64_t items = whole.column_blocks * ((whole.tiles + size - 1) / size);
    return (items + threads - 1) / threads * threads * 10 > items * 11;
  };
  while (chunk > 16 && rounds_up_much(chunk)) chunk = (chunk + 1) / 2;
  return chunk;
}

void run(const Convolution& call, int64_t tile) {
  const auto plan = RSF_KERNEL(winograd_plan);
  const int outputs = static_cast<int>(tile);
  const WinogradPlan whole = plan(call, outputs, INT64_MAX, call.channels);
  // Weights are shared in whole, tiles in part.
  const int64_t all_weights = whole.column_blocks * whole.weight_size();
  if (all_weights < std::min(whole.input_size(), kShared)) {
    return run_with_shared_weights(call, plan(call, outputs, kOwnChunk, call.channels));
  }
  const int64_t chunk = shared_chunk(whole);
  run_with_shared_tiles(call, plan(call, outputs, chunk, kSlice));
}

// All tiles of a chunk, of the image and of the result's gradient, meet at every point.
void run_weight_gradient(const Convolution& call, float* gradient) {
  const WinogradPlan plan = RSF_KERNEL(winograd_plan)(call, 4, kGradientChunk, call.channels);
  const int64_t image_tiles = plan.input_size(), block_tiles = plan.product_size(), sums = plan.weight_size();
  const Workspace scratch(image_tiles + plan.column_blocks * (block_tiles + sums));
  float *v = scratch.data(), *w = v + image_tiles, *u = w + plan.column_blocks * block_tiles;
  const auto input = RSF_KERNEL(winograd_input);
  const auto output = RSF_KERNEL(winograd_gradient_tiles);
  const auto multiply = RSF_KERNEL(winograd_gradient_multiply);
  const auto weights = RSF_KERNEL(winograd_gradient_weights);
  for (int64_t chunk = 0; chunk < plan.chunks(); ++chunk) {
    const int64_t first = chunk * plan.chunk, last = std::min(first + plan.chunk, plan.tiles);
    parallel_for(first, last, kTileGrain, [&](int64_t begin, int64_t end) {
      input(call, plan, begin, end, v);
      for (int64_t block = 0; block < plan.column_blocks; ++block) {
        output(call, plan, block, begin, end, w + block * block_tiles);
      }
    });
    parallel_for(0, plan.column_blocks * plan.points, 1, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t block = item / plan.points, point = item % plan.points;
        multiply(call, plan, chunk, block, v + point * plan.input_point,
                 w + block * block_tiles + point * plan.product_point, u + block * sums + point * plan.weight_point);
      }
    });
  }
  parallel_for(0, plan.column_blocks * call.channels, 16, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t block = begin / call.channels, stop = std::min(end, (block + 1) * call.channels);
      weights(call, plan, block, begin - block * call.channels, stop - block * call.channels, u + block * sums,
              gradient);
      begin = stop;
    }
  });
}

Tensor conv2d(Tensor x, Tensor weight, OptionalTensor bias, int64_t padding, OptionalTensor normalization, bool silu,
              OptionalTensor residual, bool upsample, int64_t tile) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 4 && x.numel() > 0, "x must be [B, C, H, W] on the CPU and not empty");
  STD_TORCH_CHECK(tile == 4 || tile == 6 || tile == 8, "tile must be 4, 6 or 8");
  STD_TORCH_CHECK(padding >= 0, "padding must not be negative");
  const int64_t channels = x.size(1);
  STD_TORCH_CHECK(weight.is_cpu() && weight.dim() == 4 && weight.size(0) > 0 && weight.size(1) == channels &&
                      weight.size(2) == 3 && weight.size(3) == 3,
                  "weight must be [O, C, 3, 3] on the CPU");
  const int64_t out_channels = weight.size(0);
  STD_TORCH_CHECK((out_channels == 1 || weight.stride(0) == 1) && weight.stride(2) == 3 * weight.stride(3),
                  "weight must lie in memory with output channels last and taps in order");
  const Tensor image = channels_last(x);
  Convolution call{};
  call.batch = x.size(0);
  call.height = x.size(2);
  call.width = x.size(3);
  call.channels = channels;
  call.out_channels = out_channels;
  call.padding = padding;
  call.upsample = upsample;
  call.silu = silu;
  STD_TORCH_CHECK(call.out_height() > 0 && call.out_width() > 0, "the image is smaller than the kernel");
  const std::vector<int64_t> size{x.size(0), out_channels, call.out_height(), call.out_width()};
  Tensor y =
      torch::stable::empty(size, x.scalar_type(), std::nullopt, x.device(), std::nullopt, MemoryFormat::ChannelsLast);
  advise_huge_pages(y.mutable_data_ptr(), static_cast<std::size_t>(y.numel()) * y.element_size());
  OptionalTensor biases, statistics, added;
  if (bias) biases = flat(*bias, ScalarType::Float, out_channels, x, "bias");
  if (normalization) {
    statistics = flat(*normalization, ScalarType::Float, x.size(0) * 3 * channels, x, "normalization");
  }
  if (residual) {
    check_like(*residual, y, "residual");
    STD_TORCH_CHECK(residual->scalar_type() == x.scalar_type(), "residual must have x's dtype");
    added = channels_last(*residual);
  }
  call.x = image.const_data_ptr();
  call.weight = weight.const_data_ptr();
  call.bias = biases ? static_cast<const float*>(biases->const_data_ptr()) : nullptr;
  call.normalization = statistics ? static_cast<const float*>(statistics->const_data_ptr()) : nullptr;
  call.residual = added ? added->const_data_ptr() : nullptr;
  call.y = y.mutable_data_ptr();
  call.dtype = dtype_of(x, "x");
  call.weight_dtype = dtype_of(weight, "weight");
  call.tap_stride = weight.stride(3);
  call.channel_stride = weight.stride(1);
  run(call, tile);
  return y;
}

Tensor conv2d_weight_gradient(Tensor dy, Tensor x, int64_t padding) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 4 && x.numel() > 0, "x must be [B, C, H, W] on the CPU and not empty");
  STD_TORCH_CHECK(padding >= 0, "padding must not be negative");
  Convolution call{};
  call.batch = x.size(0);
  call.channels = x.size(1);
  call.height = x.size(2);
  call.width = x.size(3);
  call.padding = padding;
  STD_TORCH_CHECK(dy.is_cpu() && dy.dim() == 4 && dy.numel() > 0 && dy.size(0) == call.batch &&
                      dy.size(2) == call.out_height() && dy.size(3) == call.out_width() &&
                      dy.scalar_type() == x.scalar_type(),
                  "dy must be shaped like the result of x, on the CPU and of x's dtype");
  call.out_channels = dy.size(1);
  const Tensor image = channels_last(x), gradient = channels_last(dy);
  call.x = image.const_data_ptr();
  call.y = const_cast<void*>(gradient.const_data_ptr());  // only read
  call.dtype = dtype_of(x, "x");
  const std::vector<int64_t> size{3, 3, call.channels, call.out_channels};
  Tensor taps = torch::stable::empty(size, ScalarType::Float, std::nullopt, x.device());
  run_weight_gradient(call, static_cast<float*>(taps.mutable_data_ptr()));
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

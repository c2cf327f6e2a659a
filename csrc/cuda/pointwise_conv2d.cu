// 1×1 convolution: one matrix product on the rows of the channels-last image, with the normalization before it.
//
// A block takes some pixels of one image and some output channels, and iterates over the input channels, several tiles
// of which are on their way to shared memory at a time. A thread normalizes there what it has copied itself, before the
// barrier that precedes the product, so that no normalized image exists. Blocks of the same pixels are neighbours in
// the grid: all but the first find x in the L2 cache, where the weight stays anyway.

#include "pointwise_conv2d.h"

#include <algorithm>

#include "pointwise_conv2d_products.h"
#include "result_tile.h"

namespace resshift::cuda {
namespace {

// How a call is divided.
struct PointwisePlan {
  std::int64_t images, pixels;  // of the images that blocks do not cross
  int parts, channel_tiles, slots;

  std::int64_t blocks() const { return images * parts * channel_tiles; }
};

// Mean, gain and offset of every channel in shared memory, for (x − mean) · gain + offset.
struct ChannelNorm {
  float* values;
  int pitch;

  static constexpr int kKinds = 3;

  // Called by the whole block; a barrier must follow. Channels that pad the last tile stay 0.
  RSF_DEVICE void load(const PointwiseConv2d& call, std::int64_t image) const {
    const float* const statistics = call.statistics + image * 2 * call.groups;
    const int group_channels = call.channels / call.groups;
    for (int c = static_cast<int>(threadIdx.x); c < pitch; c += static_cast<int>(blockDim.x)) {
      const bool exists = c < call.channels;
      const int group = exists ? c / group_channels : 0;
      values[c] = exists ? statistics[group] : 0.0f;
      values[pitch + c] = exists ? statistics[call.groups + group] * resshift::load(call.norm_weight, 0, c, 0) : 0.0f;
      values[2 * pitch + c] = exists ? resshift::load(call.norm_bias, 0, c, 0) : 0.0f;
    }
  }

  template <int WIDTH>
  RSF_DEVICE void get(float (&own)[WIDTH], int kind, int channel) const {
#pragma unroll
    for (int i = 0; i < WIDTH; i += 4) {
      const auto piece = load_vector<4>(values + kind * pitch + channel + i);
#pragma unroll
      for (int j = 0; j < 4; ++j) own[i + j] = piece[j];
    }
  }
};

// A tile [ROWS, kDepth] of a matrix [rows, columns] that begins at a row and is followed by its later columns.
template <class Product, int ROWS>
struct Factor {
  using T = typename Product::Element;
  static constexpr int kChunks = Product::kDepth / Product::kChunk, kElements = ROWS * Product::kPitch;
  static constexpr int kPieces = ROWS * kChunks / Product::kThreads;  // of a thread, all in the same columns
  static_assert(Product::kThreads % kChunks == 0 && ROWS * kChunks % Product::kThreads == 0);

  const T* matrix;  // the tile's first row
  int rows, columns;

  RSF_DEVICE static int row(int piece) { return (static_cast<int>(threadIdx.x) + piece * Product::kThreads) / kChunks; }
  RSF_DEVICE static int chunk() { return static_cast<int>(threadIdx.x) % kChunks; }

  // Begin to copy the columns from `first` on; what is past the end is zero.
  RSF_DEVICE void load(T* tile, int first) const {
    const int column = first + chunk() * Product::kChunk;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const int r = row(piece);
      T* const to = tile + Product::place(r, chunk());
      const T* const from = matrix + static_cast<std::int64_t>(r) * columns + column;
      if (r < rows && column + Product::kChunk <= columns && columns % Product::kChunk == 0) {
        copy_async(to, from);
        continue;
      }
      Vector<T, Product::kChunk> values{};
      if (r < rows) {
#pragma unroll
        for (int j = 0; j < Product::kChunk; ++j) {
          if (column + j < columns) values[j] = from[j];
        }
      }
      store_vector(to, values);
    }
  }

  // Normalize what this thread has copied.
  RSF_DEVICE static void normalize(T* tile, const ChannelNorm& norm, int first) {
    float mean[Product::kChunk], gain[Product::kChunk], offset[Product::kChunk];
    const int channel = first + chunk() * Product::kChunk;
    norm.get(mean, 0, channel);
    norm.get(gain, 1, channel);
    norm.get(offset, 2, channel);
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      T* const own = tile + Product::place(row(piece), chunk());
      auto values = load_vector<Product::kChunk>(own);
#pragma unroll
      for (int j = 0; j < Product::kChunk; ++j) {
        values[j] = from_float<T>((to_float(values[j]) - mean[j]) * gain[j] + offset[j]);
      }
      store_vector(own, values);
    }
  }
};

// Blocks of a multiprocessor are given, because by itself the compiler aims for more on some architectures, and spills.
template <class Product>
__global__ void __launch_bounds__(Product::kThreads, Product::kBlocks)
    pointwise_conv2d_kernel(const __grid_constant__ PointwiseConv2d call, const __grid_constant__ PointwisePlan plan) {
  using T = typename Product::Element;
  using Pixels = Factor<Product, Product::kRows>;
  using Weights = Factor<Product, Product::kColumns>;
  constexpr int kDepth = Product::kDepth, kStages = Product::kStages, kStage = Pixels::kElements + Weights::kElements;
  const unsigned tiles = static_cast<unsigned>(plan.channel_tiles), parts = static_cast<unsigned>(plan.parts);
  const TilePlace place{blockIdx.x / tiles / parts,
                        static_cast<int>(blockIdx.x / tiles % parts),
                        plan.parts,
                        static_cast<int>(blockIdx.x % tiles),
                        plan.channel_tiles,
                        Product::kColumns,
                        plan.slots};
  const std::int64_t first = place.part * std::int64_t{Product::kRows}, pixel = place.image * plan.pixels + first;
  const int rows = static_cast<int>(min(plan.pixels - first, std::int64_t{Product::kRows}));
  const int first_channel = place.tile * Product::kColumns, steps = static_cast<int>(divide_up(call.channels, kDepth));
  const Pixels x{static_cast<const T*>(call.x) + pixel * call.channels, rows, call.channels};
  const Weights weight{static_cast<const T*>(call.weight) + static_cast<std::int64_t>(first_channel) * call.channels,
                       min(call.result.channels - first_channel, Product::kColumns), call.channels};
  T* const stages = dynamic_shared<T>();
  const ChannelNorm norm{reinterpret_cast<float*>(stages + kStages * kStage), steps * kDepth};

  const auto load = [&](int step) {
    if (step < steps) {
      T* const stage = stages + step % kStages * kStage;
      x.load(stage, step * kDepth);
      weight.load(stage + Pixels::kElements, step * kDepth);
    }
    commit_copies();
  };

#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) load(step);
  if (call.groups) {
    norm.load(call, place.image);
    __syncthreads();
  }
  typename Product::Sums sums = {};
  for (int step = 0; step < steps; ++step) {
    T* const stage = stages + step % kStages * kStage;
    wait_copies<kStages - 2>();
    if (call.groups) Pixels::normalize(stage, norm, step * kDepth);
    __syncthreads();
    load(step + kStages - 1);
    Product::multiply(sums, stage, stage + Pixels::kElements);
  }
  wait_copies<0>();
  __syncthreads();
  float* const tile = dynamic_shared<float>();
  Product::store_sums(tile, tile_pitch(Product::kColumns), sums);
  finish_tile<T>(call.result, call.next, tile, place, rows, [&](unsigned row) { return pixel + row; });
}

template <class Product>
PointwisePlan plan_of(const PointwiseConv2d& call) {
  PointwisePlan plan{call.images, call.pixels, 0, 0, 0};
  if (!call.groups && !call.next.groups) {  // nothing keeps the pixels of different images apart
    plan.images = 1;
    plan.pixels = call.images * call.pixels;
  }
  plan.parts = static_cast<int>(divide_up(plan.pixels, Product::kRows));
  plan.channel_tiles = static_cast<int>(divide_up(call.result.channels, Product::kColumns));
  if (call.next.groups) plan.slots = count_slots(call.result.channels, call.next.groups, Product::kColumns);
  return plan;
}

template <class Product>
std::size_t shared_bytes(const PointwiseConv2d& call) {
  const std::size_t stage = (Product::kRows + Product::kColumns) * Product::kPitch * sizeof(typename Product::Element);
  const std::size_t norm = call.groups ? ChannelNorm::kKinds * round_up(call.channels, Product::kDepth) : 0;
  static_assert(Product::kRows * tile_pitch(Product::kColumns) * sizeof(float) <=
                Product::kStages * (Product::kRows + Product::kColumns) * Product::kPitch *
                    sizeof(typename Product::Element));
  return Product::kStages * stage + norm * sizeof(float);
}

// Call `function` with the first of the products, from the largest on, that makes `fill` blocks, else with the last.
template <class First, class... Rest, class Function>
auto first_that_fills(const PointwiseConv2d& call, std::int64_t fill, const Function& function) {
  if constexpr (sizeof...(Rest) > 0) {
    if (plan_of<First>(call).blocks() < fill) return first_that_fills<Rest...>(call, fill, function);
  }
  return function(First{});
}

template <class Function>
auto dispatch_product(const PointwiseConv2d& call, std::int64_t fill, const Function& function) {
  return dispatch(call.result.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (sizeof(T) == 2) {
      return first_that_fills<MatrixProduct<T, 128, 64>, MatrixProduct<T, 64, 64>, MatrixProduct<T, 32, 32>>(call, fill,
                                                                                                             function);
    } else {
      return first_that_fills<FloatProduct<64, 64>, FloatProduct<32, 32>>(call, fill, function);
    }
  });
}

}  // namespace

bool pointwise_conv2d_supported(const PointwiseConv2d& call) {
  constexpr std::int64_t kMaxBlocks = (std::int64_t{1} << 31) - 1, kSmallest = 32;
  if (call.groups && call.channels > kMostNormalized) return false;
  return call.images * divide_up(call.pixels, kSmallest) <= kMaxBlocks / divide_up(call.result.channels, kSmallest);
}

std::int64_t pointwise_conv2d_scratch(const PointwiseConv2d& call, std::int64_t fill) {
  return dispatch_product(call, fill, [&](auto product) {
    using Product = decltype(product);
    const std::int64_t parts = plan_of<Product>(call).parts;
    return statistics_scratch(call.next, call.result.channels, call.images, parts, Product::kColumns);
  });
}

int pointwise_conv2d(const PointwiseConv2d& call, void* stream, std::int64_t fill) {
  return dispatch_product(call, fill, [&](auto product) {
    using Product = decltype(product);
    const PointwisePlan plan = plan_of<Product>(call);
    const dim3 grid(static_cast<unsigned>(plan.blocks())), threads(Product::kThreads);
    return launch(pointwise_conv2d_kernel<Product>, grid, threads, shared_bytes<Product>(call), stream, call, plan);
  });
}

}  // namespace resshift::cuda

// Attention within windows, its output projection and the sum after it, in one pass over the channels-last image.
//
// A block takes a tile of queries of a window and some of the output channels, and iterates over the heads and, in
// windows of several tiles, over the tiles of keys. What a head attends to is rounded to the image's dtype, as it would
// be in memory, and is the left factor of the product with the head's columns of the weight without leaving its
// registers. What the next iteration needs is copied to shared memory during the present one.
//
// Small images have few windows: their output channels, then their queries are divided among blocks. Blocks of the same
// output channels or queries repeat the attention or the loads; all but the first find them in the L2 cache.

#include "window_attention_proj.h"

#include <algorithm>

#include "result_tile.h"
#include "window_attention.h"
#include "window_attention_products.h"

namespace resshift::cuda {
namespace {

// How a call is divided: blocks of `queries` tokens, `query_rows` rows of a window, and `width` output channels.
struct ProjPlan {
  int queries, query_rows, query_tiles;
  int width, channel_tiles, slots;
  int parts;  // of an image

  std::int64_t blocks(const WindowAttentionProj& call) const {
    return call.attention.windows() * query_tiles * channel_tiles;
  }
};

// The block's shared memory. What belongs to a head, and keys and values, have two buffers each. At the end the tile of
// the result takes the place of all of it.
template <class Tiles>
struct ProjMemory {
  using T = typename Tiles::Element;
  static constexpr int kScratch = Tiles::kScratch ? Tiles::kScratch + Tiles::kTileElements : 0;  // floats

  int queries, weights, bias;  // elements

  RSF_INLINE ProjMemory(const ProjPlan& plan, int span)
      : queries(plan.queries * Tiles::kRowPitch),
        weights(plan.width * Tiles::kRowPitch),
        bias(static_cast<int>(round_up(span * span, 4))) {}

  std::size_t bytes(const ProjPlan& plan) const {
    const std::size_t elements = 2 * (queries + weights + 2 * Tiles::kTileElements);
    const std::size_t tile = plan.queries * tile_pitch(plan.width) * sizeof(float);
    return std::max(elements * sizeof(T) + (kScratch + 2 * bias) * sizeof(float), tile);
  }

  RSF_DEVICE T* queries_of(int i) const { return dynamic_shared<T>() + i % 2 * queries; }
  RSF_DEVICE T* weights_of(int i) const { return dynamic_shared<T>() + 2 * queries + i % 2 * weights; }
  RSF_DEVICE T* keys_of(int i) const {
    return dynamic_shared<T>() + 2 * (queries + weights) + i % 2 * 2 * Tiles::kTileElements;
  }
  RSF_DEVICE T* values_of(int i) const { return keys_of(i) + Tiles::kTileElements; }
  RSF_DEVICE float* scratch() const { return reinterpret_cast<float*>(keys_of(0) + 4 * Tiles::kTileElements); }
  RSF_DEVICE float* bias_of(int i) const { return scratch() + kScratch + i % 2 * bias; }
};

// Begin to copy the head's columns of the block's rows of the weight; rows past the end are zero.
template <class Tiles>
RSF_DEVICE void load_weight(typename Tiles::Element* tile, const WindowAttentionProj& call, int head, int first,
                            int width) {
  constexpr unsigned kChunks = Tiles::kHeadDim / Tiles::kChunk;
  const std::int64_t channels = static_cast<std::int64_t>(call.attention.heads) * Tiles::kHeadDim;
  const auto* weight = static_cast<const typename Tiles::Element*>(call.weight) + head * Tiles::kHeadDim;
#pragma unroll 2
  for (unsigned i = threadIdx.x; i < static_cast<unsigned>(width) * kChunks; i += blockDim.x) {
    const unsigned row = i / kChunks, chunk = i % kChunks;
    const int channel = first + static_cast<int>(row);
    if (channel < call.result.channels) {
      Tiles::load_chunk(tile, row, chunk, weight + channel * channels + chunk * Tiles::kChunk);
    } else {
      Tiles::clear_chunk(tile, row, chunk);
    }
  }
}

template <class Tiles, int WINDOW>
__global__ void __launch_bounds__(Tiles::kThreads)
    window_attention_proj_kernel(const __grid_constant__ WindowAttentionProj call,
                                 const __grid_constant__ ProjPlan plan) {
  using T = typename Tiles::Element;
  const WindowAttention& attention = call.attention;
  const Tiling<WINDOW, Tiles::kTile> tiling(attention.window);
  const ProjMemory<Tiles> memory(plan, 2 * tiling.side - 1);
  const unsigned parts = static_cast<unsigned>(plan.parts),
                 rest = blockIdx.x / static_cast<unsigned>(plan.channel_tiles);
  const int channel_tile = static_cast<int>(blockIdx.x % static_cast<unsigned>(plan.channel_tiles));
  const int first_query = static_cast<int>(rest % static_cast<unsigned>(plan.query_tiles)) * plan.query_rows;
  const Window window(attention, tiling.side, rest / static_cast<unsigned>(plan.query_tiles));
  const std::int64_t channels = static_cast<std::int64_t>(attention.heads) * Tiles::kHeadDim;
  const int tiles = tiling.tiles(), steps = attention.heads * tiles;

  const auto load = [&](int step) {
    const int head = step / tiles, tile = step % tiles;
    const T* const image = static_cast<const T*>(attention.qkv) + head * Tiles::kHeadDim;
    if (tile == 0) {
      load_rows<Tiles>(memory.queries_of(head), image, 3 * channels, tiling, window, first_query,
                       static_cast<unsigned>(plan.queries));
      load_weight<Tiles>(memory.weights_of(head), call, head, channel_tile * plan.width, plan.width);
    }
    const int first_key = tile * tiling.rows;
    load_rows<Tiles>(memory.keys_of(step), image + channels, 3 * channels, tiling, window, first_key, Tiles::kTile);
    load_rows<Tiles>(memory.values_of(step), image + 2 * channels, 3 * channels, tiling, window, first_key,
                     Tiles::kTile);
    commit_copies();
    if (tile == 0) load_bias<T>(memory.bias_of(head), attention, head);  // while the copies are in flight
  };

  typename Tiles::Sums sums = {};
  typename Tiles::Values values;
  Softmax<Tiles> softmax;
  load(0);
  for (int step = 0; step < steps; ++step) {
    const int head = step / tiles, tile = step % tiles, first_key = tile * tiling.rows;
    wait_copies<0>();
    __syncthreads();
    if (step + 1 < steps) load(step + 1);
    if (tile == 0) {
      clear<Tiles>(values);
      softmax = Softmax<Tiles>();
    }
    typename Tiles::Scores scores;
    Tiles::multiply_transposed(scores, memory.queries_of(head), memory.keys_of(step));
    if constexpr (Tiling<WINDOW, Tiles::kTile>::kWhole) {
      SquareBias square;
      square.load(memory.bias_of(head) + 15 * first_query);
      square.add<Tiles>(scores);
    } else {
      add_bias<Tiles, false>(scores, memory.bias_of(head), tiling, first_query, first_key);
    }
    add_mask<Tiles>(scores, window, tiling, first_query, first_key);
    float decay[Tiles::kRows];
    softmax.add(scores, decay);
    if (tile > 0) Tiles::multiply_rows(values, decay);
    Tiles::multiply(values, scores, 1.0f, memory.values_of(step), memory.scratch());
    if (tile + 1 < tiles) continue;
    float factor[Tiles::kRows];
#pragma unroll
    for (int i = 0; i < Tiles::kRows; ++i) factor[i] = 1.0f / warp_sum<Tiles::kRowLanes>(softmax.total[i]);
    Tiles::multiply_rows(values, factor);
    Tiles::multiply_weight(sums, values, memory.weights_of(head), plan.width, memory.scratch() + Tiles::kScratch);
  }

  __syncthreads();
  float* const tile = dynamic_shared<float>();
  Tiles::store_sums(tile, tile_pitch(plan.width), sums, plan.width);
  const TilePlace place{
      rest / parts, static_cast<int>(rest % parts), plan.parts, channel_tile, plan.channel_tiles, plan.width,
      plan.slots};
  const int rows = min(plan.query_rows, tiling.side - first_query) * tiling.side;
  finish_tile<T>(call.result, call.next, tile, place, rows,
                 [&](unsigned row) { return window.pixel(tiling.token(first_query, row)); });
}

// The largest tiles that make `fill` blocks, else the smallest.
template <class Tiles, int WINDOW>
ProjPlan plan_of(const WindowAttentionProj& call, std::int64_t fill) {
  const Tiling<WINDOW, Tiles::kTile> tiling(call.attention.window);
  constexpr bool kWhole = Tiling<WINDOW, Tiles::kTile>::kWhole;
  constexpr int kDivisors[][2] = {{1, 1}, {1, 2}, {2, 2}, {4, 2}, {4, 4}};  // of queries and of output channels
  const std::int64_t channels = call.result.channels;
  const std::int64_t images = call.attention.height / tiling.side * (call.attention.width / tiling.side);
  ProjPlan plan{};
  for (const auto& divisor : kDivisors) {
    // Only a window that is one tile is divided into bands of rows, each of them a warp's queries at least.
    const int rows = kWhole ? tiling.rows / divisor[0] : tiling.rows;
    const std::int64_t most = std::max(Tiles::kMostWidth / divisor[1], 16);
    plan.query_rows = rows;
    plan.queries = static_cast<int>(Tiles::threads(rows * tiling.side)) * Tiles::kTile / Tiles::kThreads;
    plan.query_tiles = static_cast<int>(divide_up(tiling.side, rows));
    plan.channel_tiles = static_cast<int>(divide_up(channels, most));
    plan.width = static_cast<int>(round_up(divide_up(channels, plan.channel_tiles), 16));
    plan.channel_tiles = static_cast<int>(divide_up(channels, plan.width));
    plan.parts = static_cast<int>(images) * plan.query_tiles;
    if (plan.blocks(call) >= fill) break;
  }
  if (call.next.groups) plan.slots = count_slots(call.result.channels, call.next.groups, plan.width);
  return plan;
}

// Call `function` with the variant of the kernel for a call.
template <class Function>
auto dispatch_proj(const WindowAttentionProj& call, const Function& function) {
  return dispatch(call.attention.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (sizeof(T) == 2) {
      using Tiles = MatrixTiles<T, kProjHeadDim>;
      return call.attention.window == 8 ? function(Variant<Tiles, 8>{}) : function(Variant<Tiles, 0>{});
    } else {
      return function(Variant<FloatTiles<kProjHeadDim>, 0>{});
    }
  });
}

}  // namespace

bool window_attention_proj_supported(const WindowAttentionProj& call) {
  constexpr std::int64_t kMostTiles = 8, kMaxBlocks = (std::int64_t{1} << 31) - 1;  // of queries in a window
  return window_attention_supported(call.attention) && call.attention.head_dim == kProjHeadDim &&
         call.attention.windows() <= kMaxBlocks / kMostTiles / divide_up(call.result.channels, 16);
}

std::int64_t window_attention_proj_scratch(const WindowAttentionProj& call, std::int64_t fill) {
  return dispatch_proj(call, [&](auto variant) {
    const ProjPlan plan = plan_of<typename decltype(variant)::Tiles, decltype(variant)::kWindow>(call, fill);
    return statistics_scratch(call.next, call.result.channels, call.attention.batch, plan.parts, plan.width);
  });
}

int window_attention_proj(const WindowAttentionProj& call, void* stream, std::int64_t fill) {
  return dispatch_proj(call, [&](auto variant) {
    using Tiles = typename decltype(variant)::Tiles;
    constexpr int kWindow = decltype(variant)::kWindow;
    const ProjPlan plan = plan_of<Tiles, kWindow>(call, fill);
    const dim3 grid(static_cast<unsigned>(plan.blocks(call)));
    const dim3 threads(Tiles::threads(plan.query_rows * Tiling<kWindow, Tiles::kTile>(call.attention.window).side));
    const std::size_t shared = ProjMemory<Tiles>(plan, call.attention.span()).bytes(plan);
    return launch(window_attention_proj_kernel<Tiles, kWindow>, grid, threads, shared, stream, call, plan);
  });
}

}  // namespace resshift::cuda

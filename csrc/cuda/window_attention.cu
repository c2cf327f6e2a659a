// Attention within windows, in one pass over the channels-last image.
//
// A block takes one tile of queries of a window and head, iterates over the tiles of keys, and rescales its sums as the
// maximum grows. An 8 × 8 window is one tile: q, k and v are loaded once, the first softmax is final, and a thread's
// bias is 18 values in registers. They are loaded again for every window of the block: kept in registers between
// windows, they would leave a multiprocessor one block less.

#include "window_attention.h"

#include <algorithm>

#include "window_attention_products.h"

namespace resshift::cuda {
namespace {

template <class Tiles, int WINDOW>
__global__ void __launch_bounds__(Tiles::kThreads, WINDOW ? 0 : kMinBlocks)
    window_attention_kernel(const __grid_constant__ WindowAttention call, void* out, unsigned windows,
                            unsigned windows_each) {
  using T = typename Tiles::Element;
  const Tiling<WINDOW, Tiles::kTile> tiling(call.window);
  T* const queries = dynamic_shared<T>();
  T* const keys = queries + Tiles::kTileElements;
  T* const values = keys + Tiles::kTileElements;
  float* const scratch = reinterpret_cast<float*>(values + Tiles::kTileElements);
  float* const bias = scratch + Tiles::kScratch;

  const int tiles = tiling.tiles();
  const Share share(call, tiles);
  const int first_query = share.tile * tiling.rows;
  const std::int64_t channels = static_cast<std::int64_t>(call.heads) * Tiles::kHeadDim;
  const T* const image = static_cast<const T*>(call.qkv) + share.head * Tiles::kHeadDim;
  T* const result = static_cast<T*>(out) + share.head * Tiles::kHeadDim;
  const unsigned first = share.part * windows_each, end = min(first + windows_each, windows);
  [[maybe_unused]] SquareBias square;

  for (unsigned index = first; index < end; ++index) {
    const Window window(call, tiling.side, index);
    if (index > first) __syncthreads();
    load_tile<Tiles>(queries, image, 3 * channels, tiling, window, first_query);
    typename Tiles::Values sums;
    clear<Tiles>(sums);
    Softmax<Tiles> softmax;
    for (int tile = 0; tile < tiles; ++tile) {
      const int first_key = tile * tiling.rows;
      if (tile > 0) __syncthreads();
      load_tile<Tiles>(keys, image + channels, 3 * channels, tiling, window, first_key);
      load_tile<Tiles>(values, image + 2 * channels, 3 * channels, tiling, window, first_key);
      if (index == first && tile == 0) load_bias<T>(bias, call, share.head);  // while the copies are in flight
      finish_tiles();
      typename Tiles::Scores scores;
      Tiles::multiply_transposed(scores, queries, keys);
      if constexpr (Tiling<WINDOW, Tiles::kTile>::kWhole) {
        square.load(bias);
        square.add<Tiles>(scores);
      } else {
        add_bias<Tiles, false>(scores, bias, tiling, first_query, first_key);
      }
      add_mask<Tiles>(scores, window, tiling, first_query, first_key);
      float decay[Tiles::kRows];
      softmax.add(scores, decay);
      if (tile > 0) Tiles::multiply_rows(sums, decay);
      Tiles::multiply(sums, scores, 1.0f, values, scratch);
    }
    float factor[Tiles::kRows];
#pragma unroll
    for (int i = 0; i < Tiles::kRows; ++i) factor[i] = 1.0f / warp_sum<Tiles::kRowLanes>(softmax.total[i]);
    Tiles::multiply_rows(sums, factor);
    store_values<Tiles>(result, channels, sums, tiling, window, first_query);
  }
}

template <class Tiles, int WINDOW>
int start(const WindowAttention& call, void* out, void* stream) {
  const Tiling<WINDOW, Tiles::kTile> tiling(call.window);
  const std::int64_t windows = call.windows(), blocks = windows * call.heads * tiling.tiles();
  // More windows for each block save loads of the bias, once there are enough blocks to fill a GPU.
  const unsigned each = WINDOW == 0 || blocks <= 1024 ? 1 : blocks <= 4096 ? 2 : 4;
  const dim3 grid(static_cast<unsigned>(divide_up(windows, each) * call.heads * tiling.tiles()));
  const dim3 threads(Tiles::threads(tiling.tile_tokens()));
  const std::size_t shared = 3 * Tiles::kTileElements * sizeof(typename Tiles::Element) +
                             (Tiles::kScratch + call.span() * call.span()) * sizeof(float);
  return launch(window_attention_kernel<Tiles, WINDOW>, grid, threads, shared, stream, call, out,
                static_cast<unsigned>(windows), each);
}

}  // namespace

bool window_attention_supported(const WindowAttention& call) {
  constexpr std::int64_t kMaxSide = std::int64_t{1} << 30, kMaxBlocks = (std::int64_t{1} << 31) - 1, kMaxTiles = 8;
  const bool head = call.head_dim == 16 || call.head_dim == 32 || call.head_dim == 64;
  return call.window >= kMinWindow && call.window <= 16 && head && call.height <= kMaxSide && call.width <= kMaxSide &&
         call.windows() <= kMaxBlocks / (kMaxTiles * call.heads);
}

int window_attention(const WindowAttention& call, void* out, void* stream) {
  return dispatch_variant(call, [&](auto variant) {
    using Chosen = decltype(variant);
    return start<typename Chosen::Tiles, Chosen::kWindow>(call, out, stream);
  });
}

}  // namespace resshift::cuda

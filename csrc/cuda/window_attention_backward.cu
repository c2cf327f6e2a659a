// Gradients of window attention. The probabilities are computed again from q and k. With P the probabilities and dO the
// gradient of the output,
//
//   dP = dO vᵀ,  δ = rowsum(P ∘ dP),  dS = P ∘ (dP − δ),  dq = dS k / √d,  dk = dSᵀ q / √d,  dv = Pᵀ dO
//
// Rows of a tile of scores are queries for dq and keys for dk and dv, so that each gradient is a sum over columns that
// one warp holds; scores are computed for each of the two. An 8 × 8 window is one tile, for which one kernel does
// everything. For larger windows, a block of a first kernel takes a tile of queries, computes each query's softmax and
// δ, stores them, and iterates over the keys again for dq; a block of a second kernel takes a tile of keys.
//
// The gradient of the bias is dS summed over windows and pairs of tokens with the same offset. Each block sums its own
// windows in order, and a last kernel sums over the blocks in a fixed order: there are no atomics, and results are
// bitwise the same from run to run.

#include <algorithm>

#include "window_attention.h"
#include "window_attention_products.h"

namespace resshift::cuda {
namespace {

constexpr std::int64_t kMaxBlocks = 1024;  // each of which stores sums of the bias gradient over its windows
constexpr int kSumThreads = 256, kSlices = kSumThreads / kWarpSize;

// A block's pointers into the tensors: its head's channels of the first pixel.
template <class T>
struct Images {
  const T* qkv;
  const T* dout;
  T* dqkv;
  std::int64_t channels;

  RSF_DEVICE Images(const WindowAttention& call, const WindowAttentionGradients& gradients, int head) {
    channels = static_cast<std::int64_t>(call.heads) * call.head_dim;
    qkv = static_cast<const T*>(call.qkv) + head * call.head_dim;
    dout = static_cast<const T*>(gradients.dout) + head * call.head_dim;
    dqkv = static_cast<T*>(gradients.dqkv) + head * call.head_dim;
  }
};

// A block's shared memory: tiles [kTile, head_dim], dS [kTile, kTile], and values of queries and of the bias.
template <class Tiles>
struct Shared {
  using T = typename Tiles::Element;

  T *queries, *dout, *keys, *values;
  float *scratch, *dscores, *normalizer, *delta, *bias, *sums;

  // Bytes of tiles and dS. Unless they are needed at the same time (`apart`), dS takes the tiles' place.
  RSF_INLINE static unsigned first_bytes(bool apart) {
    constexpr unsigned kTiles = 4 * Tiles::kTileElements * sizeof(T);
    constexpr unsigned kScores = Tiles::kTile * Tiles::kPitch * sizeof(float);
    return apart ? kTiles + kScores : kTiles > kScores ? kTiles : kScores;
  }

  static std::size_t bytes(bool apart, int entries) {
    return first_bytes(apart) + (Tiles::kScratch + 2 * Tiles::kTile + 2 * entries) * sizeof(float);
  }

  RSF_DEVICE static Shared divide(bool apart, int entries) {
    Shared shared;
    char* const memory = dynamic_shared<char>();
    shared.queries = reinterpret_cast<T*>(memory);
    shared.dout = shared.queries + Tiles::kTileElements;
    shared.keys = shared.dout + Tiles::kTileElements;
    shared.values = shared.keys + Tiles::kTileElements;
    shared.dscores = reinterpret_cast<float*>(apart ? shared.values + Tiles::kTileElements : shared.queries);
    shared.scratch = reinterpret_cast<float*>(memory + first_bytes(apart));
    shared.normalizer = shared.scratch + Tiles::kScratch;
    shared.delta = shared.normalizer + Tiles::kTile;
    shared.bias = shared.delta + Tiles::kTile;
    shared.sums = shared.bias + entries;
    return shared;
  }
};

// Scores of a tile of queries with one of keys, and dP.
template <class Tiles, class TilingType>
RSF_DEVICE void score_queries(typename Tiles::Scores& scores, typename Tiles::Scores& dp, const Shared<Tiles>& shared,
                              const TilingType& tiling, const Window& window, int first_query, int first_key) {
  Tiles::multiply_transposed(scores, shared.queries, shared.keys);
  add_bias<Tiles, false>(scores, shared.bias, tiling, first_query, first_key);
  add_mask<Tiles>(scores, window, tiling, first_query, first_key);
  Tiles::multiply_transposed(dp, shared.dout, shared.values);
}

// Add rowsum(P ∘ dP) of this thread's columns to `delta`, still to be divided by the total.
template <class Tiles>
RSF_DEVICE void add_delta(float (&delta)[Tiles::kRows], typename Tiles::Scores& p, typename Tiles::Scores& dp) {
#pragma unroll
  for (int i = 0; i < Tiles::kRows; ++i) {
#pragma unroll
    for (int j = 0; j < Tiles::kColumns; ++j) delta[i] += Tiles::at(p, i, j) * Tiles::at(dp, i, j);
  }
}

// Finish each row: log₂ of its sum of e^score, and δ.
template <class Tiles>
RSF_DEVICE void finish_rows(const Softmax<Tiles>& softmax, float (&normalizer)[Tiles::kRows],
                            float (&delta)[Tiles::kRows]) {
#pragma unroll
  for (int i = 0; i < Tiles::kRows; ++i) {
    const float total = warp_sum<Tiles::kRowLanes>(softmax.total[i]);
    normalizer[i] = softmax.maximum[i] + log2f(total);
    delta[i] = warp_sum<Tiles::kRowLanes>(delta[i]) / total;
  }
}

// Add a tile of queries' part of dk and dv; rows are keys, columns queries.
template <class Tiles, class TilingType>
RSF_DEVICE void add_key_gradients(typename Tiles::Values& dk, typename Tiles::Values& dv, const Shared<Tiles>& shared,
                                  const TilingType& tiling, const Window& window, int first_query, int first_key) {
  typename Tiles::Scores p, ds;
  Tiles::multiply_transposed(p, shared.keys, shared.queries);
  add_bias<Tiles, true>(p, shared.bias, tiling, first_key, first_query);
  add_mask<Tiles>(p, window, tiling, first_key, first_query);
#pragma unroll
  for (int j = 0; j < Tiles::kColumns; ++j) {
    const float normalizer = shared.normalizer[Tiles::column(j)];
#pragma unroll
    for (int i = 0; i < Tiles::kRows; ++i) Tiles::at(p, i, j) = power_of_two(Tiles::at(p, i, j) - normalizer);
  }
  Tiles::multiply(dv, p, 1.0f, shared.dout, shared.scratch);
  Tiles::multiply_transposed(ds, shared.values, shared.dout);
#pragma unroll
  for (int j = 0; j < Tiles::kColumns; ++j) {
    const float delta = shared.delta[Tiles::column(j)];
#pragma unroll
    for (int i = 0; i < Tiles::kRows; ++i) Tiles::at(ds, i, j) = Tiles::at(p, i, j) * (Tiles::at(ds, i, j) - delta);
  }
  Tiles::multiply(dk, ds, Tiles::kScale, shared.queries, shared.scratch);
}

template <class Tiles>
RSF_DEVICE void write_scores(float* tile, typename Tiles::Scores& scores) {
#pragma unroll
  for (int i = 0; i < Tiles::kRows; ++i) {
#pragma unroll
    for (int j = 0; j < Tiles::kColumns; ++j) {
      tile[Tiles::row(i) * Tiles::kPitch + Tiles::column(j)] = Tiles::at(scores, i, j);
    }
  }
}

// The sum of the dS of a tile that belong to one entry of the bias table, which stands for one offset between query and
// key.
template <class Tiles, class TilingType>
RSF_DEVICE float bias_gradient(const float* dscores, const TilingType& tiling, int entry, int first_query,
                               int first_key) {
  const int side = tiling.side, span = 2 * side - 1, row = entry / span - side + 1, column = entry % span - side + 1;
  const int begin = max(first_query, first_key + row), left = max(0, column), right = min(side, side + column);
  const int end = min(min(first_query + tiling.rows, side), min(first_key + tiling.rows, side) + row);
  float sum = 0.0f;
  for (int r = begin; r < end; ++r) {
    const float* const line =
        dscores + (r - first_query) * side * Tiles::kPitch + (r - row - first_key) * side - column;
    for (int c = left; c < right; ++c) sum += line[c * (Tiles::kPitch + 1)];
  }
  return sum;
}

// Windows that fill one tile. partial [parts, heads, entries]
template <class Tiles, int WINDOW>
__global__ void __launch_bounds__(Tiles::kThreads)
    window_attention_backward_kernel(const __grid_constant__ WindowAttention call,
                                     const __grid_constant__ WindowAttentionGradients gradients, float* partial,
                                     unsigned windows, unsigned windows_each) {
  using T = typename Tiles::Element;
  const Tiling<WINDOW, Tiles::kTile> tiling(WINDOW);
  constexpr int kEntries = (2 * WINDOW - 1) * (2 * WINDOW - 1);
  const auto shared = Shared<Tiles>::divide(false, kEntries);
  const Share share(call, 1);
  const Images<T> images(call, gradients, share.head);
  const std::int64_t channels = images.channels;
  const unsigned first = share.part * windows_each, end = min(first + windows_each, windows);
  load_bias<T>(shared.bias, call, share.head);
  typename Tiles::Scores dbias = {};

  for (unsigned index = first; index < end; ++index) {
    const Window window(call, tiling.side, index);
    if (index > first) __syncthreads();
    load_tile<Tiles>(shared.queries, images.qkv, 3 * channels, tiling, window, 0);
    load_tile<Tiles>(shared.keys, images.qkv + channels, 3 * channels, tiling, window, 0);
    load_tile<Tiles>(shared.values, images.qkv + 2 * channels, 3 * channels, tiling, window, 0);
    load_tile<Tiles>(shared.dout, images.dout, channels, tiling, window, 0);
    finish_tiles();

    typename Tiles::Values dq, dk, dv;
    {
      typename Tiles::Scores p, dp;
      Softmax<Tiles> softmax;
      float decay[Tiles::kRows], normalizer[Tiles::kRows], delta[Tiles::kRows] = {};
      score_queries<Tiles>(p, dp, shared, tiling, window, 0, 0);
      softmax.add(p, decay);
      add_delta<Tiles>(delta, p, dp);
      finish_rows(softmax, normalizer, delta);
#pragma unroll
      for (int i = 0; i < Tiles::kRows; ++i) {
        const float factor = power_of_two(softmax.maximum[i] - normalizer[i]);
#pragma unroll
        for (int j = 0; j < Tiles::kColumns; ++j) {
          float& ds = Tiles::at(p, i, j);
          ds = ds * factor * (Tiles::at(dp, i, j) - delta[i]);
          Tiles::at(dbias, i, j) += ds;
        }
        if (lane_index() % Tiles::kRowLanes == 0) {
          shared.normalizer[Tiles::row(i)] = normalizer[i];
          shared.delta[Tiles::row(i)] = delta[i];
        }
      }
      clear<Tiles>(dq);
      Tiles::multiply(dq, p, Tiles::kScale, shared.keys, shared.scratch);
    }
    store_values<Tiles>(images.dqkv, 3 * channels, dq, tiling, window, 0);
    __syncthreads();
    clear<Tiles>(dk);
    clear<Tiles>(dv);
    add_key_gradients<Tiles>(dk, dv, shared, tiling, window, 0, 0);
    store_values<Tiles>(images.dqkv + channels, 3 * channels, dk, tiling, window, 0);
    store_values<Tiles>(images.dqkv + 2 * channels, 3 * channels, dv, tiling, window, 0);
  }

  __syncthreads();
  write_scores<Tiles>(shared.dscores, dbias);
  __syncthreads();
  partial += (static_cast<std::int64_t>(share.part) * call.heads + share.head) * kEntries;
  for (int entry = static_cast<int>(threadIdx.x); entry < kEntries; entry += Tiles::kThreads) {
    partial[entry] = bias_gradient<Tiles>(shared.dscores, tiling, entry, 0, 0);
  }
}

// dq, the bias gradient, and each query's softmax and δ.
// partial [parts, tiles, heads, entries]; queries [windows, heads, 2, tokens]
template <class Tiles, int WINDOW>
__global__ void __launch_bounds__(Tiles::kThreads, kMinBlocks)
    window_attention_queries_kernel(const __grid_constant__ WindowAttention call,
                                    const __grid_constant__ WindowAttentionGradients gradients, float* partial,
                                    float* queries, unsigned windows, unsigned windows_each) {
  using T = typename Tiles::Element;
  const Tiling<WINDOW, Tiles::kTile> tiling(call.window);
  const int entries = call.span() * call.span(), tiles = tiling.tiles(), tokens = tiling.side * tiling.side;
  const auto shared = Shared<Tiles>::divide(true, entries);
  const Share share(call, tiles);
  const int first_query = share.tile * tiling.rows;
  const Images<T> images(call, gradients, share.head);
  const std::int64_t channels = images.channels;
  const unsigned first = share.part * windows_each, end = min(first + windows_each, windows);
  for (unsigned i = threadIdx.x; i < static_cast<unsigned>(entries); i += blockDim.x) shared.sums[i] = 0.0f;

  for (unsigned index = first; index < end; ++index) {
    const Window window(call, tiling.side, index);
    auto load_keys = [&](int first_key) {
      load_tile<Tiles>(shared.keys, images.qkv + channels, 3 * channels, tiling, window, first_key);
      load_tile<Tiles>(shared.values, images.qkv + 2 * channels, 3 * channels, tiling, window, first_key);
      finish_tiles();
    };
    if (index > first) __syncthreads();
    load_tile<Tiles>(shared.queries, images.qkv, 3 * channels, tiling, window, first_query);
    if (index == first) load_bias<T>(shared.bias, call, share.head);  // while the copies are in flight
    load_tile<Tiles>(shared.dout, images.dout, channels, tiling, window, first_query);

    typename Tiles::Scores p, dp;
    Softmax<Tiles> softmax;
    float normalizer[Tiles::kRows], delta[Tiles::kRows] = {};
    for (int tile = 0; tile < tiles; ++tile) {
      if (tile > 0) __syncthreads();
      load_keys(tile * tiling.rows);
      score_queries<Tiles>(p, dp, shared, tiling, window, first_query, tile * tiling.rows);
      float decay[Tiles::kRows];
      softmax.add(p, decay);
#pragma unroll
      for (int i = 0; i < Tiles::kRows; ++i) delta[i] *= decay[i];
      add_delta<Tiles>(delta, p, dp);
    }
    finish_rows(softmax, normalizer, delta);
    float* const own = queries + (static_cast<std::int64_t>(index) * call.heads + share.head) * 2 * tokens;
#pragma unroll
    for (int i = 0; i < Tiles::kRows; ++i) {
      const Token token = tiling.token(first_query, Tiles::row(i));
      if (lane_index() % Tiles::kRowLanes != 0 || !token.inside) continue;
      own[token.row * tiling.side + token.column] = normalizer[i];
      own[tokens + token.row * tiling.side + token.column] = delta[i];
    }

    typename Tiles::Values dq;
    clear<Tiles>(dq);
    for (int tile = 0; tile < tiles; ++tile) {
      if (tiles > 1) {
        __syncthreads();
        load_keys(tile * tiling.rows);
      }
      score_queries<Tiles>(p, dp, shared, tiling, window, first_query, tile * tiling.rows);
#pragma unroll
      for (int i = 0; i < Tiles::kRows; ++i) {
#pragma unroll
        for (int j = 0; j < Tiles::kColumns; ++j) {
          float& ds = Tiles::at(p, i, j);
          ds = power_of_two(ds - normalizer[i]) * (Tiles::at(dp, i, j) - delta[i]);
        }
      }
      write_scores<Tiles>(shared.dscores, p);
      Tiles::multiply(dq, p, Tiles::kScale, shared.keys, shared.scratch);
      __syncthreads();
      for (int entry = static_cast<int>(threadIdx.x); entry < entries; entry += static_cast<int>(blockDim.x)) {
        shared.sums[entry] += bias_gradient<Tiles>(shared.dscores, tiling, entry, first_query, tile * tiling.rows);
      }
    }
    store_values<Tiles>(images.dqkv, 3 * channels, dq, tiling, window, first_query);
  }

  partial += ((static_cast<std::int64_t>(share.part) * tiles + share.tile) * call.heads + share.head) * entries;
  for (unsigned i = threadIdx.x; i < static_cast<unsigned>(entries); i += blockDim.x) partial[i] = shared.sums[i];
}

// dk and dv.
template <class Tiles, int WINDOW>
__global__ void __launch_bounds__(Tiles::kThreads, kMinBlocks)
    window_attention_keys_kernel(const __grid_constant__ WindowAttention call,
                                 const __grid_constant__ WindowAttentionGradients gradients, const float* queries) {
  using T = typename Tiles::Element;
  const Tiling<WINDOW, Tiles::kTile> tiling(call.window);
  const int entries = call.span() * call.span(), tiles = tiling.tiles(), tokens = tiling.side * tiling.side;
  const auto shared = Shared<Tiles>::divide(false, entries);
  const Share share(call, tiles);
  const int first_key = share.tile * tiling.rows;
  const Images<T> images(call, gradients, share.head);
  const std::int64_t channels = images.channels;
  const Window window(call, tiling.side, share.part);
  queries += (static_cast<std::int64_t>(share.part) * call.heads + share.head) * 2 * tokens;
  load_tile<Tiles>(shared.keys, images.qkv + channels, 3 * channels, tiling, window, first_key);
  load_tile<Tiles>(shared.values, images.qkv + 2 * channels, 3 * channels, tiling, window, first_key);
  load_bias<T>(shared.bias, call, share.head);  // while the copies are in flight

  typename Tiles::Values dk, dv;
  clear<Tiles>(dk);
  clear<Tiles>(dv);
  for (int tile = 0; tile < tiles; ++tile) {
    const int first_query = tile * tiling.rows;
    if (tile > 0) __syncthreads();
    load_tile<Tiles>(shared.queries, images.qkv, 3 * channels, tiling, window, first_query);
    load_tile<Tiles>(shared.dout, images.dout, channels, tiling, window, first_query);
    for (unsigned i = threadIdx.x; i < Tiles::kTile; i += blockDim.x) {
      const Token token = tiling.token(first_query, i);
      const int place = token.row * tiling.side + token.column;
      shared.normalizer[i] = token.inside ? queries[place] : 0.0f;
      shared.delta[i] = token.inside ? queries[tokens + place] : 0.0f;
    }
    finish_tiles();
    add_key_gradients<Tiles>(dk, dv, shared, tiling, window, first_query, first_key);
  }
  store_values<Tiles>(images.dqkv + channels, 3 * channels, dk, tiling, window, first_key);
  store_values<Tiles>(images.dqkv + 2 * channels, 3 * channels, dv, tiling, window, first_key);
}

// dtable [entries, heads] from partial [parts, heads, entries].
__global__ void __launch_bounds__(kSumThreads)
    bias_gradient_kernel(const float* partial, float* dtable, int parts, int heads, int entries) {
  RSF_SHARED(float, sums, kSumThreads);
  const int slice = static_cast<int>(threadIdx.x) / kWarpSize, lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int i = static_cast<int>(blockIdx.x) * kWarpSize + lane, count = heads * entries;
  float sum = 0.0f;
  for (int part = slice; part < parts && i < count; part += kSlices) {
    sum += partial[static_cast<std::int64_t>(part) * count + i];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (slice > 0 || i >= count) return;
#pragma unroll
  for (int other = 1; other < kSlices; ++other) sum += sums[other * kWarpSize + lane];
  dtable[static_cast<std::int64_t>(i % entries) * heads + i / entries] = sum;
}

// How a call is divided into blocks, and its scratch memory.
struct Plan {
  std::int64_t windows, windows_each, parts, tiles, entries;

  template <class Tiles, int WINDOW>
  static Plan of(const WindowAttention& call) {
    Plan plan;
    plan.windows = call.windows();
    plan.tiles = Tiling<WINDOW, Tiles::kTile>(call.window).tiles();
    plan.windows_each = divide_up(plan.windows * plan.tiles * call.heads, kMaxBlocks);
    plan.parts = divide_up(plan.windows, plan.windows_each);
    plan.entries = static_cast<std::int64_t>(call.span()) * call.span();
    return plan;
  }

  std::int64_t partial_size(const WindowAttention& call) const { return parts * tiles * call.heads * entries; }
};

template <class Tiles, int WINDOW>
int start(const WindowAttention& call, const WindowAttentionGradients& gradients, void* stream) {
  const Plan plan = Plan::of<Tiles, WINDOW>(call);
  const int entries = static_cast<int>(plan.entries);
  const Tiling<WINDOW, Tiles::kTile> tiling(call.window);
  const dim3 grid(static_cast<unsigned>(plan.parts * plan.tiles * call.heads));
  const dim3 threads(Tiles::threads(tiling.tile_tokens()));
  const auto windows = static_cast<unsigned>(plan.windows), each = static_cast<unsigned>(plan.windows_each);
  float* const partial = gradients.scratch;
  int error = 0;
  if constexpr (WINDOW * WINDOW == Tiles::kTile) {
    error = launch(window_attention_backward_kernel<Tiles, WINDOW>, grid, threads, Shared<Tiles>::bytes(false, entries),
                   stream, call, gradients, partial, windows, each);
  } else {
    float* const queries = partial + plan.partial_size(call);
    error = launch(window_attention_queries_kernel<Tiles, WINDOW>, grid, threads, Shared<Tiles>::bytes(true, entries),
                   stream, call, gradients, partial, queries, windows, each);
    const dim3 key_grid(static_cast<unsigned>(plan.windows * plan.tiles * call.heads));
    if (!error) {
      error = launch(window_attention_keys_kernel<Tiles, WINDOW>, key_grid, threads,
                     Shared<Tiles>::bytes(false, entries), stream, call, gradients, queries);
    }
  }
  if (error) return error;
  const auto sum_grid = static_cast<unsigned>(divide_up(plan.entries * call.heads, kWarpSize));
  return launch(bias_gradient_kernel, dim3(sum_grid), dim3(kSumThreads), 0, stream, partial, gradients.dtable,
                static_cast<int>(plan.parts * plan.tiles), static_cast<int>(call.heads), entries);
}

}  // namespace

std::int64_t window_attention_scratch(const WindowAttention& call) {
  return dispatch_variant(call, [&](auto variant) {
    using Tiles = typename decltype(variant)::Tiles;
    constexpr int kWindow = decltype(variant)::kWindow;
    const Plan plan = Plan::of<Tiles, kWindow>(call);
    const std::int64_t queries =
        kWindow * kWindow == Tiles::kTile ? 0 : plan.windows * call.heads * 2 * call.window * call.window;
    return plan.partial_size(call) + queries;
  });
}

int window_attention_backward(const WindowAttention& call, const WindowAttentionGradients& gradients, void* stream) {
  return dispatch_variant(call, [&](auto variant) {
    using Chosen = decltype(variant);
    return start<typename Chosen::Tiles, Chosen::kWindow>(call, gradients, stream);
  });
}

}  // namespace resshift::cuda

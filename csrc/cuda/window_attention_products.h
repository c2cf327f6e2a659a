// Tiles of 64 tokens that are multiplied by matrix instructions, and tiles of 32 that are multiplied in float32: two
// classes with the same members, so that each kernel of window attention is written once.
//
// A warp (in float32, half a warp) owns some rows of a tile of scores, so that its products with another tile need no
// barrier. at(scores, i, j) is row row(i), column column(j) of the tile; kRowLanes neighbouring lanes share a row.
#pragma once

#include <type_traits>

#include "matrix.h"
#include "window_attention_tiles.h"

namespace resshift::cuda {

// Blocks on a multiprocessor for kernels of any window; for more of them the compiler would spill registers.
constexpr int kMinBlocks = 2;

// Unsigned, so that divisions need no case for negative values.
RSF_DEVICE unsigned warp_index() { return threadIdx.x / kWarpSize; }
RSF_DEVICE unsigned lane_index() { return threadIdx.x % kWarpSize; }

// Word i of lane t among four neighbouring lanes becomes word t of lane i.
RSF_DEVICE void transpose_words(std::uint32_t (&words)[4]) {
#pragma unroll
  for (int distance = 1; distance <= 2; distance *= 2) {
    const bool upper = threadIdx.x & distance;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int low = distance == 1 ? 2 * k : k, high = low + distance;
      const std::uint32_t received = __shfl_xor_sync(kAllLanes, upper ? words[low] : words[high], distance);
      words[low] = upper ? received : words[low];
      words[high] = upper ? words[high] : received;
    }
  }
}

// Four warps, each with 16 rows of a tile of scores [64, 64], as accumulators of mma_16x8x16. The scores of one product
// are the left factor of the next without leaving their registers.
template <class T, int D>
struct MatrixTiles {
  using Element = T;
  using Scores = float[8][4];
  using Values = float[D / 8][4];

  static constexpr int kHeadDim = D, kTile = 64, kThreads = 128, kRows = 2, kColumns = 16, kRowLanes = 4;
  static constexpr int kTileElements = kTile * D, kScratch = 0;
  static constexpr int kRowPitch = D;     // of a tile in shared memory
  static constexpr int kMostWidth = 192;  // of a projection; with more the registers spill
  using Sums = float[kMostWidth / 8][4];
  static constexpr int kPitch = kTile + 8;  // of a tile of float32 scores in shared memory: at most 2 lanes in a bank
  static constexpr int kChunk = 8;          // elements that are loaded and stored at once
  static constexpr float kScale = D == 16 ? 0.25f : D == 32 ? 0.17677669529663687f : 0.125f;

  // Of a block; warps that would only have padding rows are left out.
  static unsigned threads(int tokens) { return static_cast<unsigned>(divide_up(tokens, 16)) * kWarpSize; }

  RSF_DEVICE static unsigned row(int i) { return 16 * warp_index() + lane_index() / 4 + 8 * i; }
  RSF_DEVICE static unsigned column(int j) { return 8 * (j / 2) + 2 * (lane_index() % 4) + j % 2; }
  RSF_DEVICE static float& at(Scores& scores, int i, int j) { return scores[j / 2][2 * i + j % 2]; }

  // Place of a chunk in a tile [64, D] in shared memory, such that the eight rows of a matrix that is loaded lie in
  // different banks.
  RSF_DEVICE static unsigned place(unsigned row, unsigned chunk) {
    constexpr unsigned kChunks = D / kChunk;
    return row * D + (chunk ^ (row / (8 / kChunks)) % kChunks) * kChunk;
  }

  RSF_DEVICE static void load_chunk(T* tile, unsigned row, unsigned chunk, const T* from) {
    copy_async(tile + place(row, chunk), from);
  }

  RSF_DEVICE static void clear_chunk(T* tile, unsigned row, unsigned chunk) {
    store_vector(tile + place(row, chunk), Vector<T, kChunk>{});
  }

  // scores = a bᵀ
  RSF_DEVICE static void multiply_transposed(Scores& scores, const T* a, const T* b) {
    const unsigned lane = lane_index();
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[j][i] = 0.0f;
    }
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      std::uint32_t left[4];
      load_matrices(left, a + place(16 * warp_index() + lane % 16, 2 * k + lane / 16));
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        std::uint32_t right[4];
        load_matrices(right, b + place(8 * j + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
        mma_16x8x16<T>(scores[j], left, {right[0], right[1]});
        mma_16x8x16<T>(scores[j + 1], left, {right[2], right[3]});
      }
    }
  }

  // values += factor · scores b
  RSF_DEVICE static void multiply(Values& values, const Scores& scores, float factor, const T* b, float*) {
    const unsigned lane = lane_index();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      std::uint32_t left[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = scores[2 * k + i / 2] + i % 2 * 2;
        left[i] = pack2<T>(factor * pair[0], factor * pair[1]);
      }
#pragma unroll
      for (int j = 0; j < D / 8; j += 2) {
        std::uint32_t right[4];
        load_matrices_transposed(right, b + place(16 * k + lane % 16, j + lane / 16));
        mma_16x8x16<T>(values[j], left, {right[0], right[1]});
        mma_16x8x16<T>(values[j + 1], left, {right[2], right[3]});
      }
    }
  }

  RSF_DEVICE static void multiply_rows(Values& values, const float (&factor)[kRows]) {
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) values[j][i] *= factor[i / 2];
    }
  }

  // sums += values weightᵀ, for the first `width` rows of weight
  RSF_DEVICE static void multiply_weight(Sums& sums, const Values& values, const T* weight, int width, float*) {
    const unsigned lane = lane_index();
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      std::uint32_t left[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = values[2 * k + i / 2] + i % 2 * 2;
        left[i] = pack2<T>(pair[0], pair[1]);
      }
#pragma unroll
      for (int j = 0; j < kMostWidth / 8; j += 2) {
        if (8 * j >= width) break;
        std::uint32_t right[4];
        load_matrices(right, weight + place(8 * j + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
        mma_16x8x16<T>(sums[j], left, {right[0], right[1]});
        mma_16x8x16<T>(sums[j + 1], left, {right[2], right[3]});
      }
    }
  }

  // Write sums to rows of float32 in shared memory.
  RSF_DEVICE static void store_sums(float* tile, int pitch, const Sums& sums, int width) {
#pragma unroll
    for (int j = 0; j < kMostWidth / 8; ++j) {
      if (8 * j >= width) break;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        float* const pair = tile + row(i) * static_cast<unsigned>(pitch) + column(2 * j);
        store_vector(pair, Vector<float, 2>{{sums[j][2 * i], sums[j][2 * i + 1]}});
      }
    }
  }

  // Store each row at address_of(row), unless that is null. A thread has pieces of several chunks; four lanes exchange
  // them so that each can store whole ones.
  template <class AddressOf>
  RSF_DEVICE static void store(const Values& values, const AddressOf& address_of) {
    constexpr int kChunks = D / kChunk;
#pragma unroll
    for (int n = 0; n < kRows * kChunks; n += 4) {
      std::uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = values[(n + i) % kChunks] + (n + i) / kChunks * 2;
        words[i] = pack2<T>(pair[0], pair[1]);
      }
      transpose_words(words);
      const unsigned own = n + lane_index() % 4;
      T* const address = address_of(row(own / kChunks));
      if (address) store_words(address + own % kChunks * kChunk, words);
    }
  }
};

// 128 threads in 8 rows of 16: a thread has 4 rows and 2 columns of a tile of scores [32, 32], and the same rows and D
// / 16 neighbouring columns of values.
template <int D>
struct FloatTiles {
  using Element = float;
  using Scores = float[4][2];
  using Values = float[4][D / 16];

  static constexpr int kHeadDim = D, kTile = 32, kThreads = 128, kRows = 4, kColumns = 2, kRowLanes = 16;
  static constexpr int kRowPitch = D + 4;  // of a tile in shared memory: eight rows' chunks lie in different banks
  static constexpr int kTileElements = kTile * kRowPitch;
  static constexpr int kPitch = kTile + 4, kScratch = kTile * kPitch;
  static constexpr int kMostWidth = 96;  // of a projection, whose weight is in shared memory
  using Sums = float[kRows][kMostWidth / 16];
  static constexpr int kChunk = 4;
  static constexpr float kScale = D == 16 ? 0.25f : D == 32 ? 0.17677669529663687f : 0.125f;

  static unsigned threads(int tokens) { return static_cast<unsigned>(divide_up(tokens, 2 * kRows)) * kWarpSize; }

  RSF_DEVICE static unsigned row(int i) { return threadIdx.x / 16 * kRows + i; }
  RSF_DEVICE static unsigned column(int j) { return threadIdx.x % 16 + 16 * j; }
  RSF_DEVICE static float& at(Scores& scores, int i, int j) { return scores[i][j]; }

  RSF_DEVICE static unsigned own_values() { return threadIdx.x % 16 * (D / 16); }  // first column

  RSF_DEVICE static void load_chunk(float* tile, unsigned row, unsigned chunk, const float* from) {
    copy_async(tile + row * kRowPitch + chunk * kChunk, from);
  }

  RSF_DEVICE static void clear_chunk(float* tile, unsigned row, unsigned chunk) {
    store_vector(tile + row * kRowPitch + chunk * kChunk, Vector<float, kChunk>{});
  }

  RSF_DEVICE static void multiply_transposed(Scores& scores, const float* a, const float* b) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) scores[i][0] = scores[i][1] = 0.0f;
#pragma unroll 4
    for (int k = 0; k < D; k += 4) {
      Vector<float, 4> right[kColumns];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) right[j] = load_vector<4>(b + column(j) * kRowPitch + k);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const auto left = load_vector<4>(a + row(i) * kRowPitch + k);
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
#pragma unroll
          for (int n = 0; n < 4; ++n) scores[i][j] = fmaf(left[n], right[j][n], scores[i][j]);
        }
      }
    }
  }

  // The 16 threads of a row exchange its scores through `scratch`, which takes no barrier beyond the warp.
  RSF_DEVICE static void multiply(Values& values, const Scores& scores, float factor, const float* b, float* scratch) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) scratch[row(i) * kPitch + column(j)] = factor * scores[i][j];
    }
    __syncwarp();
#pragma unroll 2
    for (int k = 0; k < kTile; k += 4) {
      Vector<float, 4> left[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) left[i] = load_vector<4>(scratch + row(i) * kPitch + k);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const auto right = load_vector<D / 16>(b + (k + n) * kRowPitch + own_values());
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int j = 0; j < D / 16; ++j) values[i][j] = fmaf(left[i][n], right[j], values[i][j]);
        }
      }
    }
  }

  RSF_DEVICE static void multiply_rows(Values& values, const float (&factor)[kRows]) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < D / 16; ++j) values[i][j] *= factor[i];
    }
  }

  // The values of a row are exchanged through `scratch`, [kTile, kRowPitch].
  RSF_DEVICE static void multiply_weight(Sums& sums, const Values& values, const float* weight, int width,
                                         float* scratch) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < D / 16; ++j) scratch[row(i) * kRowPitch + own_values() + j] = values[i][j];
    }
    __syncwarp();
#pragma unroll 1
    for (int k = 0; k < D; k += 4) {
      Vector<float, 4> left[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) left[i] = load_vector<4>(scratch + row(i) * kRowPitch + k);
#pragma unroll
      for (int j = 0; j < kMostWidth / 16; ++j) {
        if (16 * j >= width) break;
        const auto right = load_vector<4>(weight + column(j) * kRowPitch + k);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int n = 0; n < 4; ++n) sums[i][j] = fmaf(left[i][n], right[n], sums[i][j]);
        }
      }
    }
  }

  RSF_DEVICE static void store_sums(float* tile, int pitch, const Sums& sums, int width) {
#pragma unroll
    for (int j = 0; j < kMostWidth / 16; ++j) {
      if (16 * j >= width) break;
#pragma unroll
      for (int i = 0; i < kRows; ++i) tile[row(i) * static_cast<unsigned>(pitch) + column(j)] = sums[i][j];
    }
  }

  template <class AddressOf>
  RSF_DEVICE static void store(const Values& values, const AddressOf& address_of) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      float* const address = address_of(row(i));
      if (!address) continue;
      float* const own = address + own_values();
      if constexpr (D == 64) {
        store_words(own, {bit_cast<std::uint32_t>(values[i][0]), bit_cast<std::uint32_t>(values[i][1]),
                          bit_cast<std::uint32_t>(values[i][2]), bit_cast<std::uint32_t>(values[i][3])});
      } else {
#pragma unroll
        for (int j = 0; j < D / 16; ++j) own[j] = values[i][j];
      }
    }
  }
};

// The bias of a warp's 16 rows of scores of an 8 × 8 window. A thread's scores belong to queries in 2 rows of the
// window and one column, and to keys in 8 rows and two columns. The bias depends on the distance of the rows only, so
// that 18 values serve 32 scores.
struct SquareBias {
  float entries[9][2];

  RSF_DEVICE void load(const float* bias) {
    const float* const first = bias + (2 * warp_index() * 15 + lane_index() / 4 + 7) - 2 * (lane_index() % 4);
#pragma unroll
    for (int i = 0; i < 9; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) entries[i][j] = first[15 * i - j];
    }
  }

  template <class Tiles>
  RSF_DEVICE void add(typename Tiles::Scores& scores) const {
#pragma unroll
    for (int i = 0; i < Tiles::kRows; ++i) {
#pragma unroll
      for (int j = 0; j < Tiles::kColumns; ++j) {
        float& score = Tiles::at(scores, i, j);
        score = score * (Tiles::kScale * kLog2E) + entries[i - j / 2 + 7][j % 2];
      }
    }
  }
};

// Begin to copy a head's channels of `rows` tokens, from pixels `stride` apart; tokens that pad the tile are zero.
template <class Tiles, class TilingType>
RSF_DEVICE void load_rows(typename Tiles::Element* tile, const typename Tiles::Element* image, std::int64_t stride,
                          const TilingType& tiling, const Window& window, int first, unsigned rows) {
  constexpr unsigned kChunks = Tiles::kHeadDim / Tiles::kChunk;
#pragma unroll 2
  for (unsigned i = threadIdx.x; i < rows * kChunks; i += blockDim.x) {
    const unsigned row = i / kChunks, chunk = i % kChunks;
    const Token token = tiling.token(first, row);
    if (token.inside) {
      Tiles::load_chunk(tile, row, chunk, image + window.pixel(token) * stride + chunk * Tiles::kChunk);
    } else {
      Tiles::clear_chunk(tile, row, chunk);
    }
  }
}

// The same for all tokens of a tile.
template <class Tiles, class TilingType>
RSF_DEVICE void load_tile(typename Tiles::Element* tile, const typename Tiles::Element* image, std::int64_t stride,
                          const TilingType& tiling, const Window& window, int first) {
  constexpr unsigned kChunks = Tiles::kHeadDim / Tiles::kChunk;
  if constexpr (TilingType::kWhole) {  // all threads have as many chunks; more than two at once spill with heads of 64
#pragma unroll 2
    for (unsigned n = 0; n < Tiles::kTile * kChunks / Tiles::kThreads; ++n) {
      const unsigned i = n * Tiles::kThreads + threadIdx.x, row = i / kChunks, chunk = i % kChunks;
      const std::int64_t pixel = window.pixel(tiling.token(first, row));
      Tiles::load_chunk(tile, row, chunk, image + pixel * stride + chunk * Tiles::kChunk);
    }
    return;
  }
  load_rows<Tiles>(tile, image, stride, tiling, window, first, Tiles::kTile);
}

// Wait for all tiles that the block's threads copy.
RSF_DEVICE void finish_tiles() {
  commit_copies();
  wait_copies<0>();
  __syncthreads();
}

template <class Tiles, class TilingType>
RSF_DEVICE void store_values(typename Tiles::Element* image, std::int64_t stride, const typename Tiles::Values& values,
                             const TilingType& tiling, const Window& window, int first) {
  Tiles::store(values, [&](unsigned row) {
    const Token token = tiling.token(first, row);
    return token.inside ? image + window.pixel(token) * stride : nullptr;
  });
}

template <class Tiles>
RSF_DEVICE void clear(typename Tiles::Values& values) {
  float* elements = &values[0][0];
#pragma unroll
  for (unsigned i = 0; i < sizeof(values) / sizeof(float); ++i) elements[i] = 0.0f;
}

template <class TilesType, int WINDOW>
struct Variant {
  using Tiles = TilesType;
  static constexpr int kWindow = WINDOW;
};

// Call `function` with the variant of the kernels for a call: matrix instructions for 16 bits, and a fixed size for the
// windows that fill a tile.
template <class Function>
auto dispatch_variant(const WindowAttention& call, const Function& function) {
  return dispatch(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    auto with_head = [&](auto head_dim) {
      constexpr int kHeadDim = decltype(head_dim)::value;
      if constexpr (sizeof(T) == 2) {
        return call.window == 8 ? function(Variant<MatrixTiles<T, kHeadDim>, 8>{})
                                : function(Variant<MatrixTiles<T, kHeadDim>, 0>{});
      } else {
        return function(Variant<FloatTiles<kHeadDim>, 0>{});
      }
    };
    return call.head_dim == 16   ? with_head(std::integral_constant<int, 16>{})
           : call.head_dim == 32 ? with_head(std::integral_constant<int, 32>{})
                                 : with_head(std::integral_constant<int, 64>{});
  });
}

}  // namespace resshift::cuda

// What the kernels of window attention share: where a window's tokens are in the image, and what is added to their
// scores. Tokens are addressed in the unshifted image, so that no rolled, partitioned or masked tensor exists.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/scalar.h"
#include "device.h"
#include "window_attention.h"

namespace resshift::cuda {

// A token's place in its window; one that only pads a tile is not inside.
struct Token {
  int row, column;
  bool inside;
};

// How windows are divided into tiles of at most TILE tokens: by whole rows, so that a tile is a rectangle. WINDOW is
// the side of a window, or 0 where only the call knows it.
template <int WINDOW, int TILE>
struct Tiling {
  static constexpr bool kWhole = WINDOW * WINDOW == TILE;  // a tile is a window

  int side, rows;  // of the window, and of a tile
  unsigned reciprocal;

  RSF_INLINE explicit Tiling(int window) : side(WINDOW ? WINDOW : window) {
    rows = TILE / side < side ? TILE / side : side;
    reciprocal = 65536u / static_cast<unsigned>(side) + 1;  // gives exact quotients for all tokens of a tile
  }

  RSF_INLINE int tiles() const { return kWhole ? 1 : (side + rows - 1) / rows; }
  RSF_INLINE int tile_tokens() const { return rows * side; }

  // Token `i` of the tile whose first row is `first`.
  RSF_DEVICE Token token(int first, unsigned i) const {
    const int row = static_cast<int>(WINDOW ? i / static_cast<unsigned>(side) : i * reciprocal >> 16);
    return {first + row, static_cast<int>(i) - row * side, kWhole || (row < rows && first + row < side)};
  }

  // Row of the bias table for a query and a key is center() + offset(query) − offset(key).
  RSF_DEVICE int center() const { return 2 * side * (side - 1); }
  RSF_DEVICE int offset(const Token& token) const { return token.row * (2 * side - 1) + token.column; }
};

// One of the windows of all images, numbered row by row.
struct Window {
  std::int64_t image;  // its first pixel
  int top, left, height, width;
  WindowRegions regions;

  RSF_DEVICE Window(const WindowAttention& call, int side, unsigned index) {
    height = static_cast<int>(call.height);
    width = static_cast<int>(call.width);
    const unsigned rows = static_cast<unsigned>(height / side), columns = static_cast<unsigned>(width / side);
    const unsigned line = index / columns, row = line % rows, column = index % columns;
    image = static_cast<std::int64_t>(line / rows) * height * width;
    top = static_cast<int>(row) * side + call.shift;
    left = static_cast<int>(column) * side + call.shift;
    regions.set(call, side, row, rows, column, columns);
  }

  RSF_DEVICE std::int64_t pixel(const Token& token) const {
    const int row = top + token.row, column = left + token.column;
    return image + static_cast<std::int64_t>(row < height ? row : row - height) * width +
           (column < width ? column : column - width);
  }

  RSF_DEVICE int region(const Token& token) const { return regions.of(token.row, token.column); }
};

// What a block works on. Heads vary fastest, so that neighbouring blocks share the cache lines of a pixel.
struct Share {
  int head, tile;
  unsigned part;

  RSF_DEVICE Share(const WindowAttention& call, int tiles) {
    const unsigned heads = static_cast<unsigned>(call.heads), rest = blockIdx.x / heads;
    head = static_cast<int>(blockIdx.x % heads);
    tile = static_cast<int>(rest % static_cast<unsigned>(tiles));
    part = rest / static_cast<unsigned>(tiles);
  }
};

// Copy a head's column of the bias table, times log₂ e, to shared memory; called by the whole block. A barrier must
// follow.
template <class T>
RSF_DEVICE void load_bias(float* bias, const WindowAttention& call, int head) {
  const int entries = call.span() * call.span();
  for (int i = static_cast<int>(threadIdx.x); i < entries; i += static_cast<int>(blockDim.x)) {
    const std::int64_t index = static_cast<std::int64_t>(i) * call.heads + head;
    const float value = call.table_dtype == Dtype::kFloat32 ? static_cast<const float*>(call.table)[index]
                                                            : to_float(static_cast<const T*>(call.table)[index]);
    bias[i] = value * kLog2E;
  }
}

// Turn products q · k into scores: scaled, with bias, and −∞ in the columns that pad the tile. Rows are queries and
// columns keys, or with KEY_ROWS the other way round.
template <class Tiles, bool KEY_ROWS, class TilingType>
RSF_DEVICE void add_bias(typename Tiles::Scores& scores, const float* bias, const TilingType& tiling, int first_row,
                         int first_column) {
  int row_offset[Tiles::kRows];
#pragma unroll
  for (int i = 0; i < Tiles::kRows; ++i) {
    const Token row = tiling.token(first_row, Tiles::row(i));
    row_offset[i] = row.inside ? tiling.offset(row) : 0;
  }
#pragma unroll
  for (int j = 0; j < Tiles::kColumns; ++j) {
    const Token column = tiling.token(first_column, Tiles::column(j));
    const int offset = tiling.offset(column);
#pragma unroll
    for (int i = 0; i < Tiles::kRows; ++i) {
      float& score = Tiles::at(scores, i, j);
      const int entry = tiling.center() + (KEY_ROWS ? offset - row_offset[i] : row_offset[i] - offset);
      score = column.inside ? score * (Tiles::kScale * kLog2E) + bias[entry] : -INFINITY;
    }
  }
}

template <class Tiles, class TilingType>
RSF_DEVICE void add_mask(typename Tiles::Scores& scores, const Window& window, const TilingType& tiling, int first_row,
                         int first_column) {
  if (!window.regions.several()) return;
  int region[Tiles::kRows];
#pragma unroll
  for (int i = 0; i < Tiles::kRows; ++i) region[i] = window.region(tiling.token(first_row, Tiles::row(i)));
#pragma unroll
  for (int j = 0; j < Tiles::kColumns; ++j) {
    const int other = window.region(tiling.token(first_column, Tiles::column(j)));
#pragma unroll
    for (int i = 0; i < Tiles::kRows; ++i) Tiles::at(scores, i, j) += region[i] == other ? 0.0f : kMaskScore;
  }
}

// The state of the online softmax of some queries: for each row the maximum, and this thread's part of the sum.
template <class Tiles>
struct Softmax {
  float maximum[Tiles::kRows], total[Tiles::kRows];

  RSF_DEVICE Softmax() {
#pragma unroll
    for (int i = 0; i < Tiles::kRows; ++i) {
      maximum[i] = -INFINITY;
      total[i] = 0.0f;
    }
  }

  // Turn scores into probabilities, still to be divided by the total; earlier sums of row i are to be scaled by
  // decay[i].
  RSF_DEVICE void add(typename Tiles::Scores& scores, float (&decay)[Tiles::kRows]) {
#pragma unroll
    for (int i = 0; i < Tiles::kRows; ++i) {
      float largest = Tiles::at(scores, i, 0);
#pragma unroll
      for (int j = 1; j < Tiles::kColumns; ++j) largest = fmaxf(largest, Tiles::at(scores, i, j));
      largest = fmaxf(maximum[i], warp_max<Tiles::kRowLanes>(largest));
      decay[i] = power_of_two(maximum[i] - largest);
      maximum[i] = largest;
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < Tiles::kColumns; ++j) {
        float& score = Tiles::at(scores, i, j);
        score = power_of_two(score - largest);
        sum += score;
      }
      total[i] = total[i] * decay[i] + sum;
    }
  }
};

}  // namespace resshift::cuda

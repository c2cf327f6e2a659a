// Stages of Winograd's convolution, each for some tiles, channels or output channels of a call. A transformed tile
// holds one value for every point and channel; at every point, the convolution is a matrix product of tiles with
// weights.
#pragma once

#include "../../common/integers.h"
#include "../conv2d.h"
#include "../isa.h"

namespace resshift::cpu {

// Where a tile's results begin.
struct TilePlace {
  std::int64_t image, row, column;
};

// How transformed values lie in memory. The matrices of two points are never a multiple of 4 KiB apart: they would
// compete for the same few lines of a cache.
struct WinogradPlan {
  std::int64_t outputs;                                   // m: a tile's side in the result: 4, 6 or 8
  std::int64_t points;                                    // (m + 2)²
  std::int64_t tile_rows, tile_columns, tiles;            // tiles of the whole batch
  std::int64_t chunk;                                     // tiles whose transforms lie together
  std::int64_t columns, column_blocks;                    // output channels of a column block, and how many blocks
  std::int64_t slice, slices;                             // channels that are multiplied at once, whole vectors
  std::int64_t input_point, weight_point, product_point;  // floats from a point's matrix to the next one's
  std::int64_t input_slice;                               // floats from a slice's matrices to the next one's

  RSF_INLINE TilePlace place_of(std::int64_t tile) const {
    const std::int64_t in_image = tile % (tile_columns * tile_rows);
    return {tile / (tile_columns * tile_rows), in_image / tile_columns * outputs, in_image % tile_columns * outputs};
  }
  RSF_INLINE std::int64_t chunks() const { return divide_up(tiles, chunk); }
  RSF_INLINE std::int64_t input_size() const { return slices * input_slice; }      // floats of a chunk
  RSF_INLINE std::int64_t weight_size() const { return points * weight_point; }    // of a column block
  RSF_INLINE std::int64_t product_size() const { return points * product_point; }  // of a chunk and column block
};

// A chunk of transformed tiles times a column block of transformed weights, over channels [begin, end).
struct WinogradProduct {
  std::int64_t chunk, block, begin, end;
  const float* v;  // [slices, points, chunk, slice]
  const float* u;  // [points, slice, columns]
  float* product;  // [points, chunk, columns]
};

RSF_FOR_EVERY_ISA(
    // Plan a call for tiles of 4, 6 or 8 outputs, at most `chunk` tiles and `slice` channels at once.
    WinogradPlan winograd_plan(const Conv2d& call, int outputs, std::int64_t chunk, std::int64_t slice);
    // Transform the weights of channels [begin, end) and one column block, u [points, slice, columns].
    void winograd_weights(const Conv2d& call, const WinogradPlan& plan, std::int64_t block, std::int64_t begin,
                          std::int64_t end, float* u);
    // Transform tiles [begin, end) of one chunk, v [slices, points, chunk, slice]; `begin` counts from the first of all
    // tiles.
    void winograd_input(const Conv2d& call, const WinogradPlan& plan, std::int64_t begin, std::int64_t end, float* v);
    // Set the product if it begins with channel 0, else add to it.
    void winograd_multiply(const Conv2d& call, const WinogradPlan& plan, const WinogradProduct& work);
    // Transform a product back to the result.
    void winograd_output(const Conv2d& call, const WinogradPlan& plan, std::int64_t chunk, std::int64_t block,
                         const float* product);

    // For the weight's gradient, where `y` is that of the result, and tiles have 4 outputs. Transform tiles [begin,
    // end) of one chunk and one column block of y, w [points, chunk, columns]; `begin` counts from the first of all
    // tiles.
    void winograd_gradient_tiles(const Conv2d& call, const WinogradPlan& plan, std::int64_t block, std::int64_t begin,
                                 std::int64_t end, float* w);
    // Sum the products of one point of a chunk over its tiles: u [C, columns] is set for chunk 0, else added to.
    void winograd_gradient_multiply(const Conv2d& call, const WinogradPlan& plan, std::int64_t chunk,
                                    std::int64_t block, const float* v, const float* w, float* u);
    // Transform the sums of channels [begin, end) and one column block, u [points, C, columns], to the gradient of the
    // weight, float32 [3, 3, C, O].
    void winograd_gradient_weights(const Conv2d& call, const WinogradPlan& plan, std::int64_t block, std::int64_t begin,
                                   std::int64_t end, const float* u, float* gradient);)

}  // namespace resshift::cpu

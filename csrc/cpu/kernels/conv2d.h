// 3×3 convolution with stride 1 of channels-last images by Winograd's scheme, for a part of a call's tiles and output
// channels. A transformed tile holds one value for every point and channel; the convolution is a matrix product of
// tiles with weights at every point.
#pragma once

#include <cstdint>

#include "../../common/scalar.h"
#include "../isa.h"

namespace resshift::cpu {

// One call. x is read as group_norm(x) with SiLU where that is asked for, and after nearest ×2 upsampling.
struct Convolution {
  const void* x;               // [B, H, W, C]
  const void* weight;          // [3, 3, C, O], of x's dtype or float32
  const float* bias;           // [O], or null
  const float* normalization;  // [B, 3, C]: mean, multiplier and offset, or null
  const void* residual;        // [B, H', W', O], or null
  void* y;                     // [B, H', W', O]
  Dtype dtype, weight_dtype;
  bool silu, upsample;
  std::int64_t batch, height, width, channels, out_channels, padding;
  std::int64_t tap_stride, channel_stride;  // of the weight

  RSF_INLINE std::int64_t in_height() const { return height << upsample; }
  RSF_INLINE std::int64_t in_width() const { return width << upsample; }
  RSF_INLINE std::int64_t out_height() const { return in_height() + 2 * padding - 2; }
  RSF_INLINE std::int64_t out_width() const { return in_width() + 2 * padding - 2; }
};

// Where a tile's results begin.
struct TilePlace {
  std::int64_t image, row, column;
};

// How the transformed numbers lie in memory. Matrices of different points are kept from starting at multiples of 4 KiB
// of each other: they would share the same few lines of a cache.
struct WinogradPlan {
  std::int64_t outputs;                         // m: a tile's side in the result: 4, 6 or 8
  std::int64_t points;                          // (m + 2)²
  std::int64_t tile_rows, tile_columns, tiles;  // tiles of the whole batch
  std::int64_t chunk;                           // tiles whose transforms lie together
  std::int64_t columns, column_blocks;          // output channels that are computed at once
  std::int64_t slice, slices;  // channels that are multiplied at once, whole vectors; and how many such
  std::int64_t input_point, weight_point, product_point;  // floats from a point's matrix to the next one's
  std::int64_t input_slice;                               // floats from a slice's matrices to the next one's

  RSF_INLINE TilePlace place_of(std::int64_t tile) const {
    const std::int64_t in_image = tile % (tile_columns * tile_rows);
    return {tile / (tile_columns * tile_rows), in_image / tile_columns * outputs, in_image % tile_columns * outputs};
  }
  RSF_INLINE std::int64_t chunks() const { return (tiles + chunk - 1) / chunk; }
  RSF_INLINE std::int64_t input_size() const { return slices * input_slice; }      // floats of a chunk
  RSF_INLINE std::int64_t weight_size() const { return points * weight_point; }    // of a column block
  RSF_INLINE std::int64_t product_size() const { return points * product_point; }  // of a chunk and column block
};

RSF_FOR_EVERY_ISA(
    // Plan a call for tiles of 4, 6 or 8 outputs, at most `chunk` tiles and `slice` channels at once.
    WinogradPlan winograd_plan(const Convolution& call, int outputs, std::int64_t chunk, std::int64_t slice);
    // Transform the weights of channels [begin, end) and one column block, u [points, slice, columns].
    void winograd_weights(const Convolution& call, const WinogradPlan& plan, std::int64_t block, std::int64_t begin,
                          std::int64_t end, float* u);
    // Transform tiles [begin, end) of one chunk, v [slices, points, chunk, slice]; `begin` counts from the first of all
    // tiles.
    void winograd_input(const Convolution& call, const WinogradPlan& plan, std::int64_t begin, std::int64_t end,
                        float* v);
    // Multiply channels [begin, end) of a chunk with a column block; product [points, chunk, columns] is set for the
    // channels from 0 on, and added to for others.
    void winograd_multiply(const Convolution& call, const WinogradPlan& plan, std::int64_t chunk, std::int64_t block,
                           std::int64_t begin, std::int64_t end, const float* v, const float* u, float* product);
    // Transform a product back to the result.
    void winograd_output(const Convolution& call, const WinogradPlan& plan, std::int64_t chunk, std::int64_t block,
                         const float* product);

    // For the weight's gradient, where `y` is that of the result, and tiles have 4 outputs. Transform tiles [begin,
    // end) of one chunk and one column block of y, w [points, chunk, columns]; `begin` counts from the first of all
    // tiles.
    void winograd_gradient_tiles(const Convolution& call, const WinogradPlan& plan, std::int64_t block,
                                 std::int64_t begin, std::int64_t end, float* w);
    // Sum the products of one point of a chunk over its tiles: u [C, columns] is set for chunk 0, and added to by
    // others.
    void winograd_gradient_multiply(const Convolution& call, const WinogradPlan& plan, std::int64_t chunk,
                                    std::int64_t block, const float* v, const float* w, float* u);
    // Transform the sums of channels [begin, end) and one column block, u [points, C, columns], to the gradient of the
    // weight, float32 [3, 3, C, O].
    void winograd_gradient_weights(const Convolution& call, const WinogradPlan& plan, std::int64_t block,
                                   std::int64_t begin, std::int64_t end, const float* u, float* gradient);)

}  // namespace resshift::cpu

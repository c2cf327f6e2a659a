// The gradient of the weight by the transposed algorithm: tiles of the image and of the result's gradient are
// multiplied at every point and summed over all tiles, and the sums are transformed to the nine taps.

#include "conv2d.h"
#include "conv2d_transforms.h"
#include "matrix.h"

namespace resshift::cpu::RSF_ISA {
namespace {

using Winograd = Transform<2>;
constexpr int n = Winograd::kInputs, m = Winograd::kOutputs;

// Transform one vector of channels of a tile of the result's gradient, which is zero beyond the image.
template <class T>
void gradient_tile(const Conv2d& call, const WinogradPlan& plan, std::int64_t tile, std::int64_t channel, float* w) {
  const std::int64_t height = call.out_height(), width = call.out_width(), left = call.out_channels - channel;
  const TilePlace place = plan.place_of(tile);
  Floats half[m][n];
  for (int row = 0; row < m; ++row) {
    Floats y[m] = {};
    for (int column = 0; column < m; ++column) {
      if (place.row + row >= height || place.column + column >= width) continue;
      const std::int64_t pixel = (place.image * height + place.row + row) * width + place.column + column;
      y[column] = load(static_cast<const T*>(call.y) + pixel * call.out_channels + channel, left);
    }
    Winograd::from_output(y, half[row]);
  }
  for (int column = 0; column < n; ++column) {
    Floats y[m], transformed[n];
    for (int row = 0; row < m; ++row) y[row] = half[row][column];
    Winograd::from_output(y, transformed);
    for (int row = 0; row < n; ++row) store(w + (row * n + column) * plan.product_point, transformed[row]);
  }
}

}  // namespace

void winograd_gradient_tiles(const Conv2d& call, const WinogradPlan& plan, std::int64_t block, std::int64_t begin,
                             std::int64_t end, float* w) {
  const std::int64_t channel = block * plan.columns;
  dispatch(call.dtype, [&](auto type) {
    for (std::int64_t tile = begin; tile < end; ++tile) {
      for (std::int64_t c = 0; c < smaller(plan.columns, call.out_channels - channel); c += kLanes) {
        float* at = w + tile % plan.chunk * plan.columns + c;
        gradient_tile<typename decltype(type)::type>(call, plan, tile, channel + c, at);
      }
    }
  });
}

void winograd_gradient_multiply(const Conv2d& call, const WinogradPlan& plan, std::int64_t chunk, std::int64_t block,
                                const float* v, const float* w, float* u) {
  const std::int64_t tiles = smaller(plan.chunk, plan.tiles - chunk * plan.chunk), channels = call.channels;
  const bool narrow = call.out_channels - block * plan.columns <= kLanes;
  const auto run = narrow ? (chunk ? multiply<1, true> : multiply<1, false>)
                          : (chunk ? multiply<kColumnVectors, true> : multiply<kColumnVectors, false>);
  run(channels, Product{v, 1, plan.slice, w, tiles, u, plan.columns});
}

void winograd_gradient_weights(const Conv2d& call, const WinogradPlan& plan, std::int64_t block, std::int64_t begin,
                               std::int64_t end, const float* u, float* gradient) {
  const std::int64_t first = block * plan.columns, left = call.out_channels - first;
  for (std::int64_t channel = begin; channel < end; ++channel) {
    for (std::int64_t c = 0; c < smaller(plan.columns, left); c += kLanes) {
      Floats half[3][n];
      for (int column = 0; column < n; ++column) {
        Floats in[n], taps[3];
        for (int row = 0; row < n; ++row) {
          in[row] = load(u + (row * n + column) * plan.weight_point + channel * plan.columns + c);
        }
        Winograd::to_weight(in, taps);
        for (int row = 0; row < 3; ++row) half[row][column] = taps[row];
      }
      for (int row = 0; row < 3; ++row) {
        Floats taps[3];
        Winograd::to_weight(half[row], taps);
        for (int column = 0; column < 3; ++column) {
          const std::int64_t tap = 3 * row + column;
          store(gradient + (tap * call.channels + channel) * call.out_channels + first + c, taps[column], left - c);
        }
      }
    }
  }
}

}  // namespace resshift::cpu::RSF_ISA

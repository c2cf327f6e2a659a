// Winograd's convolution: transforms of tiles and weights, and the products between them.

#include "conv2d.h"

#include <type_traits>

#include "conv2d_transforms.h"
#include "matrix.h"

namespace resshift::cpu::RSF_ISA {
namespace {

constexpr std::int64_t kSkew = 16;             // unused floats between the matrices of two points
constexpr std::int64_t kStagedChannels = 128;  // whose pixels are staged at once
constexpr std::int64_t kAhead = 6;             // channels by which weights are prefetched

// Where a channel's transforms begin among those of a tile.
RSF_INLINE std::int64_t in_slices(const WinogradPlan& plan, std::int64_t channel) {
  return channel / plan.slice * plan.input_slice + channel % plan.slice;
}

// Transform n × n vectors that lie `row_stride` and `column_stride` apart, into one vector for each point.
template <int Pairs, class T>
RSF_INLINE void transform_input(const T* x, std::int64_t row_stride, std::int64_t column_stride, float* v,
                                std::int64_t point_stride) {
  using Winograd = Transform<Pairs>;
  constexpr int n = Winograd::kInputs;
  Floats half[n][n];  // columns transformed
  for (int column = 0; column < n; ++column) {
    Floats d[n], transformed[n];
    for (int row = 0; row < n; ++row) d[row] = load(x + row * row_stride + column * column_stride);
    Winograd::input(d, transformed);
    for (int row = 0; row < n; ++row) half[row][column] = transformed[row];
  }
  for (int row = 0; row < n; ++row) {
    Floats transformed[n];
    Winograd::input(half[row], transformed);
    for (int column = 0; column < n; ++column) store(v + (row * n + column) * point_stride, transformed[column]);
  }
}

// Normalize and activate one vector of pixels.
struct Normalization {
  Floats mean, multiplier, offset;
  bool silu_after;

  RSF_INLINE Floats operator()(Floats x) const {
    const Floats y = (x - mean) * multiplier + offset;
    return silu_after ? silu(y) : y;
  }
};

// Copy some channels of a tile's pixels as float32, [n, n, kStagedChannels]: upsampled, normalized, and zero beyond the
// image.
template <class T>
void stage(const Conv2d& call, std::int64_t n, const TilePlace& place, std::int64_t channel, std::int64_t count,
           float* staged) {
  const T* x = static_cast<const T*>(call.x) + place.image * call.height * call.width * call.channels;
  const int shift = call.upsample;
  const float* statistics = call.normalization ? call.normalization + place.image * 3 * call.channels : nullptr;
  for (std::int64_t c = 0; c < count; c += kLanes) {
    const std::int64_t left = call.channels - channel - c;
    Normalization normalization{{}, {}, {}, call.silu};
    if (statistics) {
      const float* s = statistics + channel + c;
      normalization = {load(s, left), load(s + call.channels, left), load(s + 2 * call.channels, left), call.silu};
    }
    for (std::int64_t row = 0; row < n; ++row) {
      const std::int64_t y = place.row + row - call.padding;
      for (std::int64_t column = 0; column < n; ++column) {
        const std::int64_t z = place.column + column - call.padding;
        float* out = staged + (row * n + column) * kStagedChannels + c;
        if (y < 0 || y >= call.in_height() || z < 0 || z >= call.in_width()) {
          store(out, Floats{});
          continue;
        }
        const T* pixel = x + ((y >> shift) * call.width + (z >> shift)) * call.channels + channel + c;
        const Floats value = load(pixel, left);
        store(out, statistics ? normalization(value) : value);
      }
    }
  }
}

template <int Pairs, class T>
void input_tile(const Conv2d& call, const WinogradPlan& plan, std::int64_t tile, float* v) {
  constexpr std::int64_t n = Transform<Pairs>::kInputs;
  const TilePlace place = plan.place_of(tile);
  const std::int64_t row = place.row - call.padding, column = place.column - call.padding;
  const bool inside = row >= 0 && column >= 0 && row + n <= call.height && column + n <= call.width;
  const bool as_it_is = inside && !call.upsample && !call.normalization && call.channels % kLanes == 0;
  if (as_it_is) {
    const T* x =
        static_cast<const T*>(call.x) + ((place.image * call.height + row) * call.width + column) * call.channels;
    for (std::int64_t c = 0; c < call.channels; c += kLanes) {
      transform_input<Pairs>(x + c, call.width * call.channels, call.channels, v + in_slices(plan, c),
                             plan.input_point);
    }
    return;
  }
  alignas(64) float staged[n * n * kStagedChannels];
  for (std::int64_t channel = 0; channel < call.channels; channel += kStagedChannels) {
    const std::int64_t count = smaller(kStagedChannels, call.channels - channel);
    stage<T>(call, n, place, channel, count, staged);
    for (std::int64_t c = 0; c < count; c += kLanes) {
      float* out = v + in_slices(plan, channel + c);
      transform_input<Pairs>(staged + c, n * kStagedChannels, kStagedChannels, out, plan.input_point);
    }
  }
}

template <int Pairs, class W>
void weight_block(const Conv2d& call, const WinogradPlan& plan, std::int64_t block, std::int64_t begin,
                  std::int64_t end, float* u) {
  using Winograd = Transform<Pairs>;
  constexpr int n = Winograd::kInputs;
  const std::int64_t first = block * plan.columns, left = call.out_channels - first;
  for (std::int64_t channel = begin; channel < end; ++channel) {
    const W* weight = static_cast<const W*>(call.weight) + channel * call.channel_stride + first;
    if (channel + kAhead < end) {
      for (int tap = 0; tap < 9; ++tap) prefetch(weight + kAhead * call.channel_stride + tap * call.tap_stride);
    }
    for (std::int64_t c = 0; c < smaller(plan.columns, left); c += kLanes) {
      Floats half[n][3];
      for (int column = 0; column < 3; ++column) {
        Floats g[3], transformed[n];
        for (int row = 0; row < 3; ++row) g[row] = load(weight + (3 * row + column) * call.tap_stride + c, left - c);
        Winograd::weight(g, transformed);
        for (int row = 0; row < n; ++row) half[row][column] = transformed[row];
      }
      for (int row = 0; row < n; ++row) {
        Floats transformed[n];
        Winograd::weight(half[row], transformed);
        float* out = u + row * n * plan.weight_point + (channel - begin) * plan.columns + c;
        for (int column = 0; column < n; ++column) store(out + column * plan.weight_point, transformed[column]);
      }
    }
  }
}

// Transform one vector of channels of a tile's products back, and write the pixels that are in the image.
template <int Pairs, class T>
void output_tile(const Conv2d& call, const WinogradPlan& plan, const TilePlace& place, std::int64_t channel,
                 const float* product) {
  using Winograd = Transform<Pairs>;
  constexpr int n = Winograd::kInputs, m = Winograd::kOutputs;
  Floats half[m][n];
  for (int column = 0; column < n; ++column) {
    Floats in[n], transformed[m];
    for (int row = 0; row < n; ++row) in[row] = load(product + (row * n + column) * plan.product_point);
    Winograd::output(in, transformed);
    for (int row = 0; row < m; ++row) half[row][column] = transformed[row];
  }
  const std::int64_t left = call.out_channels - channel, height = call.out_height(), width = call.out_width();
  const Floats bias = call.bias ? load(call.bias + channel, left) : Floats{};
  const std::int64_t columns = smaller(m, width - place.column);
  const bool leaky = call.slope != 1;
  for (int row = 0; row < m && place.row + row < height; ++row) {
    Floats transformed[m];
    Winograd::output(half[row], transformed);
    const std::int64_t pixel = (place.image * height + place.row + row) * width + place.column;
    const std::int64_t offset = pixel * call.out_channels + channel;
    for (std::int64_t column = 0; column < columns; ++column) {
      Floats value = (transformed[column] + bias) * call.scale;
      if (leaky) value = value > 0 ? value : value * call.slope;
      const std::int64_t at = offset + column * call.out_channels;
      if (call.residual) value += load(static_cast<const T*>(call.residual) + at, left);
      store(static_cast<T*>(call.y) + at, value, left);
    }
  }
}

// Whether a point's products are zero for every image, so that they need not be computed: 15 of 64 with upsampling. At
// −1 the transform sums the differences of a tile's second and third pixel, of its fourth and fifth, and so on. Nearest
// upsampling makes each pair equal, because tiles of six outputs begin at an odd pixel.
RSF_INLINE bool vanishes(const Conv2d& call, const WinogradPlan& plan, std::int64_t point) {
  constexpr std::int64_t kMinusOne = 4, kSide = Transform<3>::kInputs;
  static_assert(Points<3>::values[1] == 1.0, "the second pair of points of tiles of six is ±1");
  const bool aligned = call.upsample && call.padding == 1 && plan.points == kSide * kSide;
  return aligned && (point / kSide == kMinusOne || point % kSide == kMinusOne);
}

template <bool Add>
void multiply_chunk(const Conv2d& call, const WinogradPlan& plan, const WinogradProduct& work) {
  const std::int64_t tiles = smaller(plan.chunk, plan.tiles - work.chunk * plan.chunk);
  const bool narrow = call.out_channels - work.block * plan.columns <= kLanes;
  for (std::int64_t point = 0; point < plan.points; ++point) {
    const float* a = work.v + in_slices(plan, work.begin) + point * plan.input_point;
    const float* b = work.u + point * plan.weight_point;
    float* out = work.product + point * plan.product_point;
    if (vanishes(call, plan, point)) {
      for (std::int64_t i = 0; i < tiles * plan.columns; i += kLanes) store(out + i, Floats{});
      continue;
    }
    const Product product{a, plan.slice, 1, b, work.end - work.begin, out, plan.columns};
    narrow ? multiply<1, Add>(tiles, product) : multiply<kColumnVectors, Add>(tiles, product);
  }
}

template <int Pairs, class T>
void output_chunk(const Conv2d& call, const WinogradPlan& plan, std::int64_t chunk, std::int64_t block,
                  const float* product) {
  const std::int64_t first = chunk * plan.chunk, tiles = smaller(plan.chunk, plan.tiles - first);
  const std::int64_t channel = block * plan.columns, channels = smaller(plan.columns, call.out_channels - channel);
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    const TilePlace place = plan.place_of(first + tile);
    for (std::int64_t c = 0; c < channels; c += kLanes) {
      output_tile<Pairs, T>(call, plan, place, channel + c, product + tile * plan.columns + c);
    }
  }
}

template <class Function>
RSF_INLINE void with_pairs(const WinogradPlan& plan, const Function& function) {
  if (plan.outputs == 4) {
    function(std::integral_constant<int, 2>{});
  } else if (plan.outputs == 6) {
    function(std::integral_constant<int, 3>{});
  } else {
    function(std::integral_constant<int, 4>{});
  }
}

}  // namespace

WinogradPlan winograd_plan(const Conv2d& call, int outputs, std::int64_t chunk, std::int64_t slice) {
  WinogradPlan plan{};
  plan.outputs = outputs;
  plan.points = (outputs + 2) * (outputs + 2);
  plan.tile_rows = divide_up(call.out_height(), outputs);
  plan.tile_columns = divide_up(call.out_width(), outputs);
  plan.tiles = call.batch * plan.tile_rows * plan.tile_columns;
  plan.chunk = smaller(chunk, plan.tiles);
  plan.columns = kColumns;
  plan.column_blocks = divide_up(call.out_channels, kColumns);
  plan.slice = round_up(smaller(slice, call.channels), kLanes);
  plan.input_point = plan.chunk * plan.slice + kSkew;
  plan.input_slice = plan.points * plan.input_point;
  plan.slices = divide_up(call.channels, plan.slice);
  plan.weight_point = plan.slice * plan.columns + kSkew;
  plan.product_point = plan.chunk * plan.columns + kSkew;
  return plan;
}

void winograd_weights(const Conv2d& call, const WinogradPlan& plan, std::int64_t block, std::int64_t begin,
                      std::int64_t end, float* u) {
  with_pairs(plan, [&](auto pairs) {
    dispatch(call.weight_dtype, [&](auto type) {
      weight_block<decltype(pairs)::value, typename decltype(type)::type>(call, plan, block, begin, end, u);
    });
  });
}

void winograd_input(const Conv2d& call, const WinogradPlan& plan, std::int64_t begin, std::int64_t end, float* v) {
  with_pairs(plan, [&](auto pairs) {
    dispatch(call.dtype, [&](auto type) {
      for (std::int64_t tile = begin; tile < end; ++tile) {
        float* at = v + tile % plan.chunk * plan.slice;
        input_tile<decltype(pairs)::value, typename decltype(type)::type>(call, plan, tile, at);
      }
    });
  });
}

void winograd_multiply(const Conv2d& call, const WinogradPlan& plan, const WinogradProduct& work) {
  work.begin ? multiply_chunk<true>(call, plan, work) : multiply_chunk<false>(call, plan, work);
}

void winograd_output(const Conv2d& call, const WinogradPlan& plan, std::int64_t chunk, std::int64_t block,
                     const float* product) {
  with_pairs(plan, [&](auto pairs) {
    dispatch(call.dtype, [&](auto type) {
      output_chunk<decltype(pairs)::value, typename decltype(type)::type>(call, plan, chunk, block, product);
    });
  });
}

}  // namespace resshift::cpu::RSF_ISA

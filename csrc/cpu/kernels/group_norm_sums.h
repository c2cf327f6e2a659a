// The statistics of channels-last images, for group_norm and add_concat_group_norm.
//
// One pass reads the images: deviations from a pivot and their squares are summed in float32 over short runs, and these
// sums in float64. A pivot is the mean of samples from all over its group, so that the mean, however large, is gone
// before anything is squared, and subtracting the squared mean of the deviations at the end loses nothing.
#pragma once

#include "group_norm_rows.h"

namespace resshift::cpu::RSF_ISA {
namespace {

constexpr std::int64_t kRows = 512;     // that are summed in float32
constexpr std::int64_t kStep = 16;      // rows that are prepared before they are summed
constexpr int kTile = 8;                // rows that share a load of pivots and a store of sums
constexpr int kStrip = kRegisters / 4;  // neighbouring vectors whose sums fit the registers

// How many of `count` elements or pixels are sampled.
RSF_INLINE std::int64_t samples(std::int64_t count) { return count < 16 ? 1 : count < 64 * 16 ? count / 16 : 64; }

// Index of sample i. Multiples of the golden ratio spread evenly over an image and do not follow its rows or columns.
RSF_INLINE std::int64_t sample(std::int64_t i, std::int64_t count) {
  const double place = 0.5 + static_cast<double>(i) * 0.6180339887498949;
  return static_cast<std::int64_t>((place - static_cast<double>(static_cast<std::int64_t>(place))) *
                                   static_cast<double>(count));
}

// Add the deviations of N rows of V vectors from their pivots, and the squares, to `sums` and `squares`.
template <int N, int V, class T>
RSF_INLINE void sum_strip(const T* x, std::int64_t stride, const float* pivot, float* sums, float* squares) {
  Floats pivots[V], total[V], square[V];
  for (int v = 0; v < V; ++v) {
    pivots[v] = load(pivot + v * kLanes);
    total[v] = load(sums + v * kLanes);
    square[v] = load(squares + v * kLanes);
  }
  for (int row = 0; row < N; ++row) {
    for (int v = 0; v < V; ++v) {
      const Floats deviation = load(x + row * stride + v * kLanes) - pivots[v];
      total[v] += deviation;
      square[v] += deviation * deviation;
    }
  }
  for (int v = 0; v < V; ++v) {
    store(sums + v * kLanes, total[v]);
    store(squares + v * kLanes, square[v]);
  }
}

template <int N, class T>
void sum_tile(const T* x, std::int64_t stride, std::int64_t width, const Columns& pivot, Columns& sums,
              Columns& squares) {
  std::int64_t i = 0;
  for (; i + kStrip * kLanes <= width; i += kStrip * kLanes) {
    sum_strip<N, kStrip>(x + i, stride, pivot.values + i, sums.values + i, squares.values + i);
  }
  for (; i < width; i += 2 * kLanes) {
    sum_strip<N, 2>(x + i, stride, pivot.values + i, sums.values + i, squares.values + i);
  }
}

// Add the sums over a range of pixels to `out` [G, 2]. `prepare(begin, end)` is called before these pixels are read.
template <class T, class Prepare>
void sum_pixels(double* out, const T* x, std::int64_t pixels, const GroupedImages& images, const float* pivots,
                const Prepare& prepare) {
  const std::int64_t channels = images.channels;
  const Rows rows(pixels, channels);
  const std::int64_t pixels_a_row = rows.length / channels;
  for (std::int64_t start = 0; start < rows.length; start += kColumns) {
    const std::int64_t width = rows.width(start), rest = rows.rest_width(start);
    Columns pivot, sums, squares;
    for_groups(start, width, channels, images.num_groups,
               [&](std::int64_t i, std::int64_t n, std::int64_t, std::int64_t group) {
                 for (std::int64_t j = 0; j < n; ++j) pivot.values[i + j] = pivots[group];
               });
    for (std::int64_t first = 0; first <= rows.count; first += kRows) {
      const std::int64_t last = first + kRows < rows.count ? first + kRows : rows.count;
      for (std::int64_t i = 0; i < width; ++i) sums.values[i] = squares.values[i] = 0.0f;
      for (std::int64_t row = first; row < last; row += kStep) {
        const std::int64_t end = row + kStep < last ? row + kStep : last;
        if (start == 0) prepare(row * pixels_a_row, end * pixels_a_row);
        const T* tile = x + row * rows.length + start;
        std::int64_t left = end - row;
        for (; left >= kTile; left -= kTile, tile += kTile * rows.length) {
          sum_tile<kTile>(tile, rows.length, width, pivot, sums, squares);
        }
        for (; left > 0; --left, tile += rows.length) {
          sum_tile<1>(tile, rows.length, width, pivot, sums, squares);
        }
      }
      if (last == rows.count && first + kRows > rows.count) {
        if (start == 0) prepare(rows.count * pixels_a_row, pixels);
        const T* tile = x + rows.count * rows.length + start;
        const std::int64_t whole = rest / (2 * kLanes) * (2 * kLanes);
        sum_tile<1>(tile, rows.length, whole, pivot, sums, squares);
        for (std::int64_t i = whole; i < rest; ++i) {
          const float deviation = to_float(tile[i]) - pivot.values[i];
          sums.values[i] += deviation;
          squares.values[i] += deviation * deviation;
        }
      }
      for_groups(start, width, channels, images.num_groups,
                 [&](std::int64_t i, std::int64_t n, std::int64_t, std::int64_t group) {
                   double total = 0.0, square = 0.0;
                   for (std::int64_t j = i; j < i + n; ++j) {
                     total += static_cast<double>(sums.values[j]);
                     square += static_cast<double>(squares.values[j]);
                   }
                   out[2 * group] += total;
                   out[2 * group + 1] += square;
                 });
    }
  }
}

// sum_groups of channels-last images, for tasks [B, parts]; `prepare` gets pixels counted over the batch.
template <class T, class Prepare>
void sum_images(const GroupNorm& call, std::int64_t begin, std::int64_t end, const Prepare& prepare) {
  const GroupedImages& images = call.images;
  const Parts parts = summed_parts(images);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t image = task / parts.count, part = task % parts.count;
    const std::int64_t first = image * images.pixels + parts.begin(part);
    double* out = group_sums(call) + task * images.num_groups * 2;
    for (std::int64_t i = 0; i < 2 * images.num_groups; ++i) out[i] = 0.0;
    sum_pixels(out, static_cast<const T*>(call.x) + first * images.channels, parts.end(part) - parts.begin(part),
               images, pivots(call) + image * images.num_groups,
               [&](std::int64_t from, std::int64_t to) { prepare(first + from, first + to); });
  }
}

}  // namespace
}  // namespace resshift::cpu::RSF_ISA

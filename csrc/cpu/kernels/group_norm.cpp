// The statistics of group_norm, with the merging of two images, and the application of what follows from them.
//
// One pass reads the images: deviations from a pivot and their squares are summed in float32 over short runs and in
// float64 from there on. A pivot is the mean of samples from all over its group, so that the mean, however large, is
// gone before anything is squared, and the last subtraction, of the squared mean of the deviations, loses nothing.

#include "group_norm.h"

#include <cmath>

#include "group_norm_rows.h"

namespace resshift::cpu::RSF_ISA {
namespace {

constexpr std::int64_t kRows = 512, kRun = 8192;  // rows and numbers that are summed in float32
constexpr std::int64_t kStep = 16;                // rows that are merged before they are summed
constexpr int kTile = 8;                          // rows that share a load of pivots and a store of sums
constexpr int kStrip = kLanes == 16 ? 8 : 4;      // vectors beside one another whose sums fit into the registers

// Where one of up to 64 samples of `count` places lies. Multiples of the golden ratio fall evenly over an image and
// stay off its lattice.
std::int64_t samples(std::int64_t count) { return count < 16 ? 1 : count < 64 * 16 ? count / 16 : 64; }

std::int64_t sample(std::int64_t i, std::int64_t count) {
  const double place = 0.5 + static_cast<double>(i) * 0.6180339887498949;
  return static_cast<std::int64_t>((place - static_cast<double>(static_cast<std::int64_t>(place))) *
                                   static_cast<double>(count));
}

// For runs so short that a call of memcpy is felt.
template <class T>
RSF_INLINE void copy(T* out, const T* x, std::int64_t count) {
  constexpr std::int64_t kWhole = kVectorBytes / sizeof(T);
  std::int64_t i = 0;
  for (; i + kWhole <= count; i += kWhole) std::memcpy(out + i, x + i, kVectorBytes);
  for (; i < count; ++i) out[i] = x[i];
}

// Pixels [begin, end) of the two images of a merge, one after the other or summed; `out` is that of pixel `begin`.
template <class T>
void merge_pixels(T* out, const GroupedImages& images, const Merge& merge, std::int64_t begin, std::int64_t end) {
  const T *x = static_cast<const T*>(merge.x), *other = static_cast<const T*>(merge.other);
  const std::int64_t first = merge.channels, second = images.channels - first;
  if (merge.concat) {
    for (std::int64_t pixel = begin; pixel < end; ++pixel, out += images.channels) {
      copy(out, x + pixel * first, first);
      copy(out + first, other + pixel * second, second);
    }
    return;
  }
  x += begin * first;
  other += begin * first;
  const std::int64_t count = (end - begin) * first;
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(x + i) + load(other + i));
  if (i < count) store(out + i, load(x + i, count - i) + load(other + i, count - i), count - i);
}

template <class T>
void pivots_of_pixels(float* out, const T* x, const GroupedImages& images) {
  const std::int64_t channels = images.channels, count = samples(images.pixels);
  for (std::int64_t g = 0; g < images.num_groups; ++g) out[g] = 0.0f;
  for (std::int64_t start = 0; start < channels; start += kColumns) {
    const std::int64_t width = channels - start < kColumns ? channels - start : kColumns;
    Columns total = {};
    for (std::int64_t i = 0; i < count; ++i) {
      const T* row = x + sample(i, images.pixels) * channels + start;
      for (std::int64_t j = 0; j < width; j += kLanes) {
        store(total.values + j, load(total.values + j) + load(row + j, width - j));
      }
    }
    for_groups(start, width, channels, images.num_groups,
               [&](std::int64_t i, std::int64_t n, std::int64_t, std::int64_t group) {
                 for (std::int64_t j = 0; j < n; ++j) out[group] += total.values[i + j];
               });
  }
  const float divisor = static_cast<float>(count * (channels / images.num_groups));
  for (std::int64_t g = 0; g < images.num_groups; ++g) out[g] /= divisor;
}

template <class T>
float pivot_of_run(const T* x, std::int64_t length) {
  const std::int64_t count = samples(length);
  float total = 0.0f;
  for (std::int64_t i = 0; i < count; ++i) total += to_float(x[sample(i, length)]);
  return total / static_cast<float>(count);
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

// Add the sums over a range of pixels to `out` [G, 2]. `prepare(begin, end)` is called before those pixels are read.
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

// The two sums over a run of numbers that all belong to one group.
template <class T>
void sum_run(double* out, const T* x, std::int64_t length, float pivot) {
  constexpr int kChains = 4;
  out[0] = out[1] = 0.0;
  for (std::int64_t first = 0; first < length; first += kRun) {
    const std::int64_t last = first + kRun < length ? first + kRun : length;
    Floats totals[kChains] = {}, squares[kChains] = {};
    std::int64_t i = first;
    for (; i + kChains * kLanes <= last; i += kChains * kLanes) {
      for (int chain = 0; chain < kChains; ++chain) {
        const Floats deviation = load(x + i + chain * kLanes) - pivot;
        totals[chain] += deviation;
        squares[chain] += deviation * deviation;
      }
    }
    for (; i < last; ++i) {
      const float deviation = to_float(x[i]) - pivot;
      totals[0][0] += deviation;
      squares[0][0] += deviation * deviation;
    }
    out[0] += static_cast<double>(sum((totals[0] + totals[1]) + (totals[2] + totals[3])));
    out[1] += static_cast<double>(sum((squares[0] + squares[1]) + (squares[2] + squares[3])));
  }
}

// Sum tasks [B, parts] of channels-last images; `prepare(begin, end)` is told pixels of the whole batch.
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

void merge_samples(const GroupNorm& call, const Merge& merge, std::int64_t begin, std::int64_t end) {
  const GroupedImages& images = call.images;
  dispatch(images.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    T* merged = static_cast<T*>(const_cast<void*>(call.x));
    for (std::int64_t image = begin; image < end; ++image) {
      for (std::int64_t i = 0; i < samples(images.pixels); ++i) {
        const std::int64_t pixel = image * images.pixels + sample(i, images.pixels);
        merge_pixels(merged + pixel * images.channels, images, merge, pixel, pixel + 1);
      }
    }
  });
}

void find_pivots(const GroupNorm& call, std::int64_t begin, std::int64_t end) {
  const GroupedImages& images = call.images;
  const std::int64_t groups = images.num_groups, length = images.channels * images.pixels;
  dispatch(images.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    for (std::int64_t image = begin; image < end; ++image) {
      const T* x = static_cast<const T*>(call.x) + image * length;
      float* out = pivots(call) + image * groups;
      if (images.channels_last) {
        pivots_of_pixels(out, x, images);
        continue;
      }
      for (std::int64_t g = 0; g < groups; ++g) out[g] = pivot_of_run(x + g * (length / groups), length / groups);
    }
  });
}

void sum_groups(const GroupNorm& call, std::int64_t begin, std::int64_t end) {
  const GroupedImages& images = call.images;
  dispatch(images.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (images.channels_last) return sum_images<T>(call, begin, end, [](std::int64_t, std::int64_t) {});
    const Parts parts = summed_parts(images);
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t part = task % parts.count, group = task / parts.count;  // of all images
      const std::int64_t image = group / images.num_groups, g = group % images.num_groups;
      double* out = group_sums(call) + ((image * parts.count + part) * images.num_groups + g) * 2;
      const T* x = static_cast<const T*>(call.x) + group * parts.length + parts.begin(part);
      sum_run(out, x, parts.end(part) - parts.begin(part), pivots(call)[group]);
    }
  });
}

void merge_and_sum_groups(const GroupNorm& call, const Merge& merge, std::int64_t begin, std::int64_t end) {
  dispatch(call.images.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    T* merged = static_cast<T*>(const_cast<void*>(call.x));
    sum_images<T>(call, begin, end, [&](std::int64_t from, std::int64_t to) {
      merge_pixels(merged + from * call.images.channels, call.images, merge, from, to);
    });
  });
}

void tabulate(const GroupNorm& call, std::int64_t begin, std::int64_t end) {
  const GroupedImages& images = call.images;
  const std::int64_t groups = images.num_groups, size = images.channels / groups;
  const std::int64_t parts = summed_parts(images).count;
  const double count = static_cast<double>(size * images.pixels);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t image = task / groups, group = task % groups;
    double total = 0.0, squares = 0.0;
    for (std::int64_t part = 0; part < parts; ++part) {
      const double* sums = group_sums(call) + ((image * parts + part) * groups + group) * 2;
      total += sums[0];
      squares += sums[1];
    }
    const double beyond_pivot = total / count, mean = pivots(call)[task] + beyond_pivot;
    const double variance = squares / count - beyond_pivot * beyond_pivot;
    const double rstd = 1.0 / std::sqrt((variance < 0.0 ? 0.0 : variance) + static_cast<double>(call.eps));
    if (call.mean) call.mean[task] = static_cast<float>(mean);
    if (call.rstd) call.rstd[task] = static_cast<float>(rstd);
    float* table = call.table + image * 3 * images.channels;
    write_affine(call.affine, image, group * size, size, mean, rstd, table, table + images.channels,
                 table + 2 * images.channels);
  }
}

}  // namespace resshift::cpu::RSF_ISA

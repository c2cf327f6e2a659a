// The statistics of group_norm, and each channel's multiplier and offset from them; group_norm_sums.h says how sums
// stay accurate.

#include "group_norm.h"

#include <cmath>

#include "group_norm_sums.h"

namespace resshift::cpu::RSF_ISA {
namespace {

constexpr std::int64_t kRun = 8192;  // elements that are summed in float32

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

// The two sums over a run of elements of one group.
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

}  // namespace

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

void tabulate(const GroupNorm& call, float* tables, std::int64_t begin, std::int64_t end) {
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
    const double from_pivot = total / count, mean = pivots(call)[task] + from_pivot;
    const double variance = squares / count - from_pivot * from_pivot;
    const double rstd = 1.0 / std::sqrt((variance < 0.0 ? 0.0 : variance) + static_cast<double>(call.eps));
    if (call.mean) call.mean[task] = static_cast<float>(mean);
    if (call.rstd) call.rstd[task] = static_cast<float>(rstd);
    float* table = tables + image * 3 * images.channels;
    write_affine(call.affine, image, group * size, size, mean, rstd, table, table + images.channels,
                 table + 2 * images.channels);
  }
}

}  // namespace resshift::cpu::RSF_ISA

// The gradient of group_norm in two passes over dy and x: sums over the pixels of every channel, then dx. In between dx
// holds dz where it takes an exponential to compute and dx has room for all its digits.
//
// With c = x − mean, multiplier m and offset o of the channel, z = c·m + o, and dz = dy·f'(z):
// dshift = Σ dz, dscale = w·rstd·Σ dz·c + b·Σ dz, and dx = dz·m − c·p − r, where p and r are, but for factors of rstd,
// the means over the group of dz·w·(1+s)·norm(x) and of dz·w·(1+s).

#include <type_traits>

#include "group_norm.h"
#include "group_norm_rows.h"

namespace resshift::cpu::RSF_ISA {
namespace {

constexpr int kTile = 2;    // rows, and vectors of each, that are computed together: independent, and nearly in order
constexpr int kChains = 4;  // vectors of a run that are computed together
constexpr std::int64_t kRows = 512, kRun = 8192;                    // rows and elements that are summed in float32
enum Row { kMean, kMultiplier, kOffset, kOfDeviation, kConstant };  // of the table of gradients

// Whether dx holds dz between the passes.
template <bool kSilu, class T>
constexpr bool kKept = kSilu && std::is_same_v<T, float>;

// x − mean of one vector, and dz.
struct Gradient {
  Floats centered, dz;

  template <bool kSilu>
  RSF_INLINE static Gradient of(Floats dy, Floats x, Floats mean, Floats multiplier, Floats offset) {
    const Floats centered = x - mean;
    if (!kSilu) return {centered, dy};
    const Floats z = centered * multiplier + offset, s = sigmoid(z);
    return {centered, dy * (s * (1.0f + z * (1.0f - s)))};
  }
};

// Add N rows of V vectors to the sums. A single vector may extend beyond `width`; its columns from there on are zero.
template <bool kSilu, int N, int V, class T>
RSF_INLINE void sum_strip(const T* dy, const T* x, T* dx, std::int64_t stride, std::int64_t first, std::int64_t width,
                          const Columns (&table)[3], Columns (&sums)[2]) {
  Floats mean[V], multiplier[V], offset[V], total[V], product[V];
  for (int v = 0; v < V; ++v) {
    const std::int64_t i = first + v * kLanes;
    mean[v] = load(table[kMean].values + i);
    multiplier[v] = load(table[kMultiplier].values + i);
    offset[v] = load(table[kOffset].values + i);
    total[v] = load(sums[0].values + i);
    product[v] = load(sums[1].values + i);
  }
  for (int row = 0; row < N; ++row) {
    for (int v = 0; v < V; ++v) {
      const std::int64_t i = first + v * kLanes, at = row * stride + i, count = V == 1 ? width - i : kLanes;
      const auto g = Gradient::of<kSilu>(load(dy + at, count), load(x + at, count), mean[v], multiplier[v], offset[v]);
      if (kKept<kSilu, T>) store(dx + at, g.dz, count);
      total[v] += g.dz;
      product[v] += g.dz * g.centered;
    }
  }
  for (int v = 0; v < V; ++v) {
    store(sums[0].values + first + v * kLanes, total[v]);
    store(sums[1].values + first + v * kLanes, product[v]);
  }
}

template <bool kSilu, int N, int V, class T>
void sum_tile(const T* dy, const T* x, T* dx, std::int64_t stride, std::int64_t width, const Columns (&table)[3],
              Columns (&sums)[2]) {
  for (std::int64_t i = 0; i < width; i += V * kLanes) {
    sum_strip<kSilu, N, V>(dy, x, dx, stride, i, width, table, sums);
  }
}

// Write the sums over a range of pixels to `out` [C, 2].
template <bool kSilu, class T>
void sum_pixels(double* out, const T* dy, const T* x, T* dx, std::int64_t pixels, std::int64_t channels,
                const float* constants) {
  const Rows rows(pixels, channels);
  for (std::int64_t i = 0; i < 2 * channels; ++i) out[i] = 0.0;
  for (std::int64_t start = 0; start < rows.length; start += kColumns) {
    const std::int64_t width = rows.width(start);
    Columns table[3], sums[2];
    for (int i = 0; i < 3; ++i) repeat(table[i], constants + i * channels, start, width, channels);
    for (std::int64_t first = 0; first <= rows.count; first += kRows) {
      const std::int64_t last = first + kRows < rows.count ? first + kRows : rows.count;
      for (std::int64_t i = 0; i < width; ++i) sums[0].values[i] = sums[1].values[i] = 0.0f;
      std::int64_t row = first, at = first * rows.length + start;
      for (; row + kTile <= last; row += kTile, at += kTile * rows.length) {
        sum_tile<kSilu, kTile, kTile>(dy + at, x + at, dx + at, rows.length, width, table, sums);
      }
      for (; row < last; ++row, at += rows.length) {
        sum_tile<kSilu, 1, kTile>(dy + at, x + at, dx + at, rows.length, width, table, sums);
      }
      if (last == rows.count && first + kRows > rows.count) {
        sum_tile<kSilu, 1, 1>(dy + at, x + at, dx + at, rows.length, rows.rest_width(start), table, sums);
      }
      for_groups(start, width, channels, 1, [&](std::int64_t i, std::int64_t n, std::int64_t channel, std::int64_t) {
        for (std::int64_t j = 0; j < n; ++j) {
          out[2 * (channel + j)] += static_cast<double>(sums[0].values[i + j]);
          out[2 * (channel + j) + 1] += static_cast<double>(sums[1].values[i + j]);
        }
      });
    }
  }
}

// Write the two sums over a run of pixels of one channel; `constants` of other kinds are `stride` apart.
template <bool kSilu, class T>
void sum_run(double* out, const T* dy, const T* x, T* dx, std::int64_t length, const float* constants,
             std::int64_t stride) {
  const Floats mean = broadcast(constants[0]), multiplier = broadcast(constants[stride]);
  const Floats offset = broadcast(constants[2 * stride]);
  out[0] = out[1] = 0.0;
  for (std::int64_t first = 0; first < length; first += kRun) {
    const std::int64_t last = first + kRun < length ? first + kRun : length;
    Floats totals[kChains] = {}, products[kChains] = {};
    std::int64_t i = first;
    for (; i + kChains * kLanes <= last; i += kChains * kLanes) {
      for (int j = 0; j < kChains; ++j) {
        const std::int64_t at = i + j * kLanes;
        const auto g = Gradient::of<kSilu>(load(dy + at), load(x + at), mean, multiplier, offset);
        if (kKept<kSilu, T>) store(dx + at, g.dz);
        totals[j] += g.dz;
        products[j] += g.dz * g.centered;
      }
    }
    for (; i < last; i += kLanes) {
      const auto g = Gradient::of<kSilu>(load(dy + i, last - i), load(x + i, last - i), mean, multiplier, offset);
      if (kKept<kSilu, T>) store(dx + i, g.dz, last - i);
      totals[0] += g.dz;
      products[0] += g.dz * g.centered;
    }
    out[0] += static_cast<double>(sum((totals[0] + totals[1]) + (totals[2] + totals[3])));
    out[1] += static_cast<double>(sum((products[0] + products[1]) + (products[2] + products[3])));
  }
}

// dx of one vector.
struct Differentiate {
  Floats mean, multiplier, offset, of_deviation, constant;

  template <bool kSilu>
  RSF_INLINE Floats apply(Floats dy, Floats x) const {
    const auto g = Gradient::of<kSilu>(dy, x, mean, multiplier, offset);
    return g.dz * multiplier - (g.centered * of_deviation + constant);
  }
};

template <bool kSilu, int N, int V, class T>
void apply_tile(T* dx, const T* dy, const T* x, std::int64_t stride, std::int64_t width,
                const Columns (&table)[kGradientRows]) {
  for (std::int64_t first = 0; first < width; first += V * kLanes) {
    Differentiate f[V];
    for (int v = 0; v < V; ++v) {
      const std::int64_t i = first + v * kLanes;
      f[v] = {load(table[kMean].values + i), load(table[kMultiplier].values + i), load(table[kOffset].values + i),
              load(table[kOfDeviation].values + i), load(table[kConstant].values + i)};
    }
    for (int row = 0; row < N; ++row) {
      for (int v = 0; v < V; ++v) {
        const std::int64_t i = first + v * kLanes, at = row * stride + i, count = V == 1 ? width - i : kLanes;
        store(dx + at, f[v].template apply<kSilu>(load(dy + at, count), load(x + at, count)), count);
      }
    }
  }
}

template <bool kSilu, class T>
void apply_to_pixels(T* dx, const T* dy, const T* x, std::int64_t pixels, std::int64_t channels,
                     const float* constants) {
  const Rows rows(pixels, channels);
  for (std::int64_t start = 0; start < rows.length; start += kColumns) {
    const std::int64_t width = rows.width(start);
    Columns table[kGradientRows];
    for (int i = 0; i < kGradientRows; ++i) repeat(table[i], constants + i * channels, start, width, channels);
    std::int64_t row = 0, at = start;
    for (; row + kTile <= rows.count; row += kTile, at += kTile * rows.length) {
      apply_tile<kSilu, kTile, kTile>(dx + at, dy + at, x + at, rows.length, width, table);
    }
    for (; row < rows.count; ++row, at += rows.length) {
      apply_tile<kSilu, 1, kTile>(dx + at, dy + at, x + at, rows.length, width, table);
    }
    apply_tile<kSilu, 1, 1>(dx + at, dy + at, x + at, rows.length, rows.rest_width(start), table);
  }
}

template <bool kSilu, class T>
void apply_to_run(T* dx, const T* dy, const T* x, std::int64_t length, const float* constants, std::int64_t stride) {
  Floats table[kGradientRows];
  for (int i = 0; i < kGradientRows; ++i) table[i] = broadcast(constants[i * stride]);
  const Differentiate f{table[kMean], table[kMultiplier], table[kOffset], table[kOfDeviation], table[kConstant]};
  std::int64_t i = 0;
  for (; i + kChains * kLanes <= length; i += kChains * kLanes) {
    for (int j = 0; j < kChains; ++j) {
      const std::int64_t at = i + j * kLanes;
      store(dx + at, f.apply<kSilu>(load(dy + at), load(x + at)));
    }
  }
  for (; i < length; i += kLanes) {
    store(dx + i, f.apply<kSilu>(load(dy + i, length - i), load(x + i, length - i)), length - i);
  }
}

// Call `visit(plane, part, pixels, offset of the first)` for tasks [planes, parts].
template <class Visit>
void for_parts(const GroupedImages& images, const Parts& parts, std::int64_t begin, std::int64_t end,
               const Visit& visit) {
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t plane = task / parts.count, part = task % parts.count, first = parts.begin(part);
    const std::int64_t offset = (plane * images.pixels + first) * (images.channels_last ? images.channels : 1);
    visit(plane, part, parts.end(part) - first, offset);
  }
}

template <bool kSilu, class T>
void sum_parts(const GroupNormBackward& call, std::int64_t begin, std::int64_t end) {
  const std::int64_t channels = call.images.channels;
  const Parts parts = pixel_parts(call.images, kSummed);
  T* dx = static_cast<T*>(call.dx);
  const T *dy = static_cast<const T*>(call.dy), *x = static_cast<const T*>(call.x);
  for_parts(call.images, parts, begin, end,
            [&](std::int64_t plane, std::int64_t part, std::int64_t count, std::int64_t at) {
              const std::int64_t image = call.images.channels_last ? plane : plane / channels;
              const float* table = gradient_table(call) + image * kGradientRows * channels;
              double* out = channel_sums(call) + (image * parts.count + part) * channels * 2;
              if (call.images.channels_last) {
                sum_pixels<kSilu>(out, dy + at, x + at, dx + at, count, channels, table);
              } else {
                const std::int64_t channel = plane % channels;
                sum_run<kSilu>(out + channel * 2, dy + at, x + at, dx + at, count, table + channel, channels);
              }
            });
}

template <bool kSilu, class T>
void apply_parts(const GroupNormBackward& call, std::int64_t begin, std::int64_t end) {
  const std::int64_t channels = call.images.channels;
  constexpr bool kAgain = kSilu && !kKept<kSilu, T>;  // whether dz is computed from dy again
  T* dx = static_cast<T*>(call.dx);
  const T *dy = kKept<kSilu, T> ? dx : static_cast<const T*>(call.dy), *x = static_cast<const T*>(call.x);
  for_parts(call.images, pixel_parts(call.images, kApplied), begin, end,
            [&](std::int64_t plane, std::int64_t, std::int64_t count, std::int64_t at) {
              const std::int64_t image = call.images.channels_last ? plane : plane / channels;
              const float* table = gradient_table(call) + image * kGradientRows * channels;
              if (call.images.channels_last) {
                apply_to_pixels<kAgain>(dx + at, dy + at, x + at, count, channels, table);
              } else {
                apply_to_run<kAgain>(dx + at, dy + at, x + at, count, table + plane % channels, channels);
              }
            });
}

// Sum the parts of one channel into the first.
void merge(double* sums, std::int64_t parts, std::int64_t stride) {
  for (std::int64_t part = 1; part < parts; ++part) {
    sums[0] += sums[part * stride];
    sums[1] += sums[part * stride + 1];
  }
}

}  // namespace

void tabulate_again(const GroupNormBackward& call, std::int64_t begin, std::int64_t end) {
  const std::int64_t channels = call.images.channels, groups = call.images.num_groups;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t image = task / groups, group = task % groups;
    float* table = gradient_table(call) + image * kGradientRows * channels;
    write_affine(call.affine, image, group * (channels / groups), channels / groups, call.mean[task], call.rstd[task],
                 table + kMean * channels, table + kMultiplier * channels, table + kOffset * channels);
  }
}

void sum_channels(const GroupNormBackward& call, std::int64_t begin, std::int64_t end) {
  dispatch(call.images.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    call.affine.silu ? sum_parts<true, T>(call, begin, end) : sum_parts<false, T>(call, begin, end);
  });
}

void tabulate_gradients(const GroupNormBackward& call, std::int64_t begin, std::int64_t end) {
  const GroupedImages& images = call.images;
  const std::int64_t channels = images.channels, groups = images.num_groups, size = channels / groups;
  const std::int64_t parts = pixel_parts(images, kSummed).count;
  const double count = static_cast<double>(size * images.pixels);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t image = task / groups, first = task % groups * size;
    const double rstd = static_cast<double>(call.rstd[task]);
    double constant = 0.0, of_deviation = 0.0;
    for (std::int64_t chunk = first; chunk < first + size; chunk += kParameters) {
      const std::int64_t left = first + size - chunk, n = left < kParameters ? left : kParameters;
      const Parameters p(call.affine, image, chunk, n);
      for (std::int64_t i = 0; i < n; ++i) {
        const std::int64_t channel = chunk + i;
        double* sums = channel_sums(call) + (image * parts * channels + channel) * 2;
        merge(sums, parts, 2 * channels);
        const double normalized = sums[1] * rstd, weight = static_cast<double>(p.weight[i]);
        call.dshift[image * channels + channel] = static_cast<float>(sums[0]);
        call.dscale[image * channels + channel] =
            static_cast<float>(weight * normalized + static_cast<double>(p.bias[i]) * sums[0]);
        constant += weight * p.gain[i] * sums[0];
        of_deviation += weight * p.gain[i] * normalized;
      }
    }
    float* table = gradient_table(call) + image * kGradientRows * channels;
    for (std::int64_t channel = first; channel < first + size; ++channel) {
      table[kOfDeviation * channels + channel] = static_cast<float>(of_deviation / count * rstd * rstd);
      table[kConstant * channels + channel] = static_cast<float>(constant / count * rstd);
    }
  }
}

void differentiate_parameters(const GroupNormBackward& call, std::int64_t begin, std::int64_t end) {
  const GroupedImages& images = call.images;
  const std::int64_t parts = pixel_parts(images, kSummed).count, size = images.channels / images.num_groups;
  for (std::int64_t channel = begin; channel < end; ++channel) {
    double weight = 0.0, bias = 0.0;
    for (std::int64_t image = 0; image < images.batch; ++image) {
      const Parameters p(call.affine, image, channel, 1);
      const double* sums = channel_sums(call) + (image * parts * images.channels + channel) * 2;
      const double rstd = static_cast<double>(call.rstd[image * images.num_groups + channel / size]);
      weight += static_cast<double>(p.gain[0]) * sums[1] * rstd;
      bias += static_cast<double>(p.gain[0]) * sums[0];
    }
    call.dweight[channel] = static_cast<float>(weight);
    call.dbias[channel] = static_cast<float>(bias);
  }
}

void apply_gradients(const GroupNormBackward& call, std::int64_t begin, std::int64_t end) {
  dispatch(call.images.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    call.affine.silu ? apply_parts<true, T>(call, begin, end) : apply_parts<false, T>(call, begin, end);
  });
}

}  // namespace resshift::cpu::RSF_ISA

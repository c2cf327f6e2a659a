// What the kernels of group_norm share: channels-last pixels as rows of whole vectors, and parameters.
#pragma once

#include "group_norm.h"
#include "simd.h"

namespace resshift::cpu::RSF_ISA {

// Elements of a row that are computed together; their constants and sums fit the first-level cache.
constexpr std::int64_t kColumns = 1024;
struct alignas(kVectorBytes) Columns {
  float values[kColumns];
};

// Pixels as rows of one or several pixels, whole pairs of vectors long, and a last, partial row.
struct Rows {
  std::int64_t length, count, rest;  // elements of a row, rows, elements of the partial row

  RSF_INLINE Rows(std::int64_t pixels, std::int64_t channels) : length(channels) {
    while (length % (2 * kLanes) != 0 || length < 4 * kLanes) length *= 2;
    count = pixels * channels / length;
    rest = pixels * channels % length;
  }
  // How many columns are computed together from `start` on, and how many of them the partial row has.
  RSF_INLINE std::int64_t width(std::int64_t start) const {
    return length - start < kColumns ? length - start : kColumns;
  }
  RSF_INLINE std::int64_t rest_width(std::int64_t start) const {
    const std::int64_t left = rest - start;
    return left < 0 ? 0 : left < kColumns ? left : kColumns;
  }
};

// Call `visit(i, n, channel, group)` for each run of columns [i, i + n) that belong to one group; columns are counted
// from column `start` of the row.
template <class Visit>
RSF_INLINE void for_groups(std::int64_t start, std::int64_t width, std::int64_t channels, std::int64_t num_groups,
                           const Visit& visit) {
  const std::int64_t size = channels / num_groups;
  std::int64_t channel = start % channels, group = channel / size;
  for (std::int64_t i = 0; i < width;) {
    const std::int64_t left = (group + 1) * size - channel, n = left < width - i ? left : width - i;
    visit(i, n, channel, group);
    i += n;
    channel += n;
    group = channel == (group + 1) * size ? group + 1 : group;
    if (channel == channels) channel = group = 0;
  }
}

// Columns of a row of constants [C] that repeats with every pixel.
RSF_INLINE void repeat(Columns& columns, const float* constants, std::int64_t start, std::int64_t width,
                       std::int64_t channels) {
  for_groups(start, width, channels, 1, [&](std::int64_t i, std::int64_t n, std::int64_t channel, std::int64_t) {
    for (std::int64_t j = 0; j < n; ++j) columns.values[i + j] = constants[channel + j];
  });
}

// Load `count` elements of a parameter from `channel` on, or `otherwise` if there is no parameter.
RSF_INLINE void load_channels(float* out, const View& view, std::int64_t image, std::int64_t channel,
                              std::int64_t count, float otherwise) {
  if (!view.data) {
    for (std::int64_t i = 0; i < count; ++i) out[i] = otherwise;
    return;
  }
  dispatch(view.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* first = static_cast<const T*>(view.data) + offset(view, image, channel, 0);
    for (std::int64_t i = 0; i < count; ++i) out[i] = to_float(first[i * view.channel]);
  });
}

// The parameters of a few channels of one image.
constexpr std::int64_t kParameters = 64;
struct Parameters {
  float weight[kParameters], bias[kParameters], gain[kParameters], shift[kParameters];  // gain: 1 + scale

  RSF_INLINE Parameters(const Affine& affine, std::int64_t image, std::int64_t channel, std::int64_t count) {
    load_channels(weight, affine.weight, 0, channel, count, 1.0f);
    load_channels(bias, affine.bias, 0, channel, count, 0.0f);
    load_channels(gain, affine.scale, image, channel, count, 0.0f);
    load_channels(shift, affine.shift, image, channel, count, 0.0f);
    for (std::int64_t i = 0; i < count; ++i) gain[i] += 1.0f;
  }
};

// Multiplier and offset of channels [first, first + count) of one image: norm(x)·w·(1+s) + b·(1+s) + h is
// (x − mean)·multiplier + offset. The offset makes up for the rounding of `mean` to float32.
RSF_INLINE void write_affine(const Affine& affine, std::int64_t image, std::int64_t first, std::int64_t count,
                             double mean, double rstd, float* means, float* multipliers, float* offsets) {
  const float rounded = static_cast<float>(mean);
  for (std::int64_t begin = first; begin < first + count; begin += kParameters) {
    const std::int64_t left = first + count - begin, n = left < kParameters ? left : kParameters;
    const Parameters p(affine, image, begin, n);
    for (std::int64_t i = 0; i < n; ++i) {
      const double multiplier = rstd * p.weight[i] * p.gain[i];
      means[begin + i] = rounded;
      multipliers[begin + i] = static_cast<float>(multiplier);
      offsets[begin + i] =
          static_cast<float>(static_cast<double>(p.bias[i]) * p.gain[i] + p.shift[i] - (mean - rounded) * multiplier);
    }
  }
}

}  // namespace resshift::cpu::RSF_ISA

// y = f((x − mean) · multiplier + offset), the last stage of group_norm.

#include "group_norm.h"
#include "group_norm_rows.h"

namespace resshift::cpu::RSF_ISA {
namespace {

constexpr int kTile = 2;    // rows, and vectors of each, that are computed together: independent, and nearly in order
constexpr int kChains = 4;  // vectors of a run that are computed together

struct Normalize {
  Floats mean, multiplier, offset;

  template <bool kSilu>
  RSF_INLINE Floats apply(Floats x) const {
    const Floats z = (x - mean) * multiplier + offset;
    return kSilu ? silu(z) : z;
  }
};

template <bool kSilu, int N, class T>
void apply_tile(T* y, const T* x, std::int64_t stride, std::int64_t width, const Columns (&table)[3]) {
  for (std::int64_t i = 0; i < width; i += kTile * kLanes) {
    Normalize f[kTile];
    for (int v = 0; v < kTile; ++v) {
      const std::int64_t at = i + v * kLanes;
      f[v] = {load(table[0].values + at), load(table[1].values + at), load(table[2].values + at)};
    }
    for (int row = 0; row < N; ++row) {
      for (int v = 0; v < kTile; ++v) {
        const std::int64_t at = row * stride + i + v * kLanes;
        store(y + at, f[v].template apply<kSilu>(load(x + at)));
      }
    }
  }
}

template <bool kSilu, class T>
void apply_to_pixels(T* y, const T* x, std::int64_t pixels, std::int64_t channels, const float* constants) {
  const Rows rows(pixels, channels);
  for (std::int64_t start = 0; start < rows.length; start += kColumns) {
    const std::int64_t width = rows.width(start), rest = rows.rest_width(start);
    Columns table[3];
    for (int i = 0; i < 3; ++i) repeat(table[i], constants + i * channels, start, width, channels);
    std::int64_t row = 0, at = start;
    for (; row + kTile <= rows.count; row += kTile, at += kTile * rows.length) {
      apply_tile<kSilu, kTile>(y + at, x + at, rows.length, width, table);
    }
    for (; row < rows.count; ++row, at += rows.length) {
      apply_tile<kSilu, 1>(y + at, x + at, rows.length, width, table);
    }
    for (std::int64_t i = 0; i < rest; i += kLanes) {
      const Normalize f{load(table[0].values + i), load(table[1].values + i), load(table[2].values + i)};
      store(y + at + i, f.apply<kSilu>(load(x + at + i, rest - i)), rest - i);
    }
  }
}

template <bool kSilu, class T>
void apply_to_run(T* y, const T* x, std::int64_t length, const Normalize& f) {
  std::int64_t i = 0;
  for (; i + kChains * kLanes <= length; i += kChains * kLanes) {
    for (int j = 0; j < kChains; ++j) store(y + i + j * kLanes, f.apply<kSilu>(load(x + i + j * kLanes)));
  }
  for (; i < length; i += kLanes) store(y + i, f.apply<kSilu>(load(x + i, length - i)), length - i);
}

template <bool kSilu, class T>
void apply_parts(const GroupNorm& call, const float* table, std::int64_t begin, std::int64_t end) {
  const GroupedImages& images = call.images;
  const Parts parts = pixel_parts(images, kApplied);
  const std::int64_t channels = images.channels;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t plane = task / parts.count, part = task % parts.count;
    const std::int64_t count = parts.end(part) - parts.begin(part);
    const std::int64_t at = (plane * images.pixels + parts.begin(part)) * (images.channels_last ? channels : 1);
    T* y = static_cast<T*>(call.y) + at;
    const T* x = static_cast<const T*>(call.x) + at;
    if (images.channels_last) {
      apply_to_pixels<kSilu>(y, x, count, channels, table + plane * 3 * channels);
    } else {
      const float* constants = table + plane / channels * 3 * channels + plane % channels;
      apply_to_run<kSilu>(
          y, x, count,
          Normalize{broadcast(constants[0]), broadcast(constants[channels]), broadcast(constants[2 * channels])});
    }
  }
}

}  // namespace

void apply_table(const GroupNorm& call, const float* table, std::int64_t begin, std::int64_t end) {
  dispatch(call.images.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    call.affine.silu ? apply_parts<true, T>(call, table, begin, end) : apply_parts<false, T>(call, table, begin, end);
  });
}

}  // namespace resshift::cpu::RSF_ISA

// Where the tokens of a window are in the image, and copying a head's part of them to matrices and back. Tokens are
// addressed in the unshifted image, so that no rolled, partitioned or masked tensor exists.
#pragma once

#include "transpose.h"
#include "window_attention_products.h"

namespace resshift::cpu::RSF_ISA {
namespace {

// One of the windows of all images, numbered row by row.
struct Window {
  std::int64_t count;               // of tokens
  std::int64_t pixels[kMaxTokens];  // of the tokens, counted over all images
  float regions[kMaxTokens];        // of the tokens, as in WindowRegions
  bool masked;                      // whether there are several regions

  void find(const WindowAttention& call, std::int64_t index) {
    const std::int64_t side = call.window, rows = call.height / side, columns = call.width / side;
    const std::int64_t line = index / columns, column = index % columns, row = line % rows;
    WindowRegions split;
    split.set(call, call.window, static_cast<unsigned>(row), static_cast<unsigned>(rows), static_cast<unsigned>(column),
              static_cast<unsigned>(columns));
    masked = split.several();
    count = side * side;
    const std::int64_t image = line / rows * call.height * call.width;
    for (std::int64_t token = 0; token < padded(count); ++token) {
      const std::int64_t i = token / side, j = token % side;
      const std::int64_t y = row * side + call.shift + i, x = column * side + call.shift + j;
      regions[token] = static_cast<float>(split.of(static_cast<int>(i), static_cast<int>(j)));
      pixels[token] = image + (y < call.height ? y : y - call.height) * call.width;
      pixels[token] += x < call.width ? x : x - call.width;
    }
  }
};

// A head's channels of an image whose pixels are `pitch` elements apart.
template <class T>
struct Image {
  T* data;
  std::int64_t pitch;
  const std::int64_t* pixels;

  RSF_INLINE T* token(std::int64_t index) const { return data + pixels[index] * pitch; }
};

// Prefetch the next head's channels, which follow this one's: hardware does not predict reads of a few lines of each of
// many pixels.
template <class T>
RSF_INLINE void prefetch_next(const T* token, std::int64_t done, std::int64_t head_dim) {
  __builtin_prefetch(token + head_dim + done);
}

// Copy some of a window's tokens to rows of units [tokens, pitch], filled up with zeros.
template <class Units, class T>
RSF_INLINE void copy_rows(float* rows, std::int64_t pitch, const Image<const T>& image, std::int64_t first,
                          std::int64_t count, std::int64_t head_dim) {
  for (std::int64_t i = 0; i < count; ++i) {
    const T* const token = image.token(first + i);
    for (std::int64_t unit = 0; unit * Units::kElements < head_dim; unit += kLanes) {
      const std::int64_t done = unit * Units::kElements;
      prefetch_next(token, done, head_dim);
      store(rows + i * pitch + unit, Units::load_units(token + done, head_dim - done));
    }
  }
}

// The same transposed, [units, kQueries]; tokens up to the next multiple of kLanes are zero.
template <class Units, class T>
RSF_INLINE void copy_columns(float* columns, const Image<const T>& image, std::int64_t first, std::int64_t count,
                             std::int64_t head_dim) {
  const std::int64_t units = (head_dim + Units::kElements - 1) / Units::kElements;
  for (std::int64_t i = 0; i < count; i += kLanes) {
    for (std::int64_t unit = 0; unit < units; unit += kLanes) {
      const std::int64_t done = unit * Units::kElements;
      Floats block[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        block[lane] = Floats{};
        if (i + lane >= count) continue;
        const T* const token = image.token(first + i + lane);
        prefetch_next(token, done, head_dim);
        block[lane] = Units::load_units(token + done, head_dim - done);
      }
      transpose(block);
      for (int lane = 0; lane < kLanes && unit + lane < units; ++lane) {
        store(columns + (unit + lane) * kQueries + i, block[lane]);
      }
    }
  }
}

// The inverse of copy_columns for float32: columns [head_dim, kQueries] to tokens.
template <class T>
RSF_INLINE void write_columns(const Image<T>& image, const float* columns, std::int64_t first, std::int64_t count,
                              std::int64_t head_dim) {
  for (std::int64_t channel = 0; channel < head_dim; channel += kLanes) {
    for (std::int64_t i = 0; i < count; i += kLanes) {
      Floats block[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        block[lane] = channel + lane < head_dim ? load(columns + (channel + lane) * kQueries + i) : Floats{};
      }
      transpose(block);
      for (int lane = 0; lane < kLanes && i + lane < count; ++lane) {
        store(image.token(first + i + lane) + channel, block[lane], head_dim - channel);
      }
    }
  }
}

// The inverse of copy_rows for float32.
template <class T>
RSF_INLINE void write_rows(const Image<T>& image, const float* rows, std::int64_t pitch, std::int64_t count,
                           std::int64_t head_dim) {
  for (std::int64_t i = 0; i < count; ++i) {
    T* const token = image.token(i);
    for (std::int64_t channel = 0; channel < head_dim; channel += kLanes) {
      store(token + channel, load(rows + i * pitch + channel), head_dim - channel);
    }
  }
}

// Scores [keys, kQueries] of queries from `first` on: k · q, scaled, with bias and mask, times log₂ e.
template <class Units>
RSF_INLINE void score(float* scores, const float* keys, std::int64_t pitch, const float* queries, const float* bias,
                      const WindowAttention& call, const Window& window, std::int64_t first, std::int64_t columns) {
  const std::int64_t units = (call.head_dim + Units::kElements - 1) / Units::kElements,
                     bias_pitch = padded(window.count);
  const float scale = kLog2E / __builtin_sqrtf(static_cast<float>(call.head_dim));
  multiply<Units>(Rows{keys, pitch, 1}, Columns{queries, kQueries}, units, window.count, columns,
                  [&](std::int64_t key, std::int64_t query, Floats sum) __attribute__((always_inline)) {
                    store(scores + key * kQueries + query, sum * scale + load(bias + key * bias_pitch + first + query));
                  });
  if (!window.masked) return;
  for (std::int64_t key = 0; key < window.count; ++key) {
    for (std::int64_t query = 0; query < columns; query += kLanes) {
      float* const place = scores + key * kQueries + query;
      const Ints hidden = load(window.regions + first + query) != broadcast(window.regions[key]);
      store(place, load(place) + select(hidden, broadcast(kMaskScore), Floats{}));
    }
  }
}

}  // namespace
}  // namespace resshift::cpu::RSF_ISA

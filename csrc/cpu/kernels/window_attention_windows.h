// Where the tokens of a window are in the image, and copying a head's part of them to matrices and back. Tokens are
// addressed in the unshifted image, so that no rolled, partitioned or masked tensor exists.
#pragma once

#include "transpose.h"
#include "window_attention_products.h"

namespace resshift::cpu::RSF_ISA {
namespace {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kMaskScore = -100.0f * kLog2E;

// One of the windows of all images, numbered row by row.
struct Window {
  std::int64_t count;               // of tokens
  std::int64_t pixels[kMaxTokens];  // of the tokens, counted over all images
  float regions[kMaxTokens];        // tokens of different regions do not see one another
  bool masked;                      // whether there are several

  void find(const WindowAttention& call, std::int64_t index) {
    const std::int64_t side = call.window, rows = call.height / side, columns = call.width / side;
    const std::int64_t line = index / columns, column = index % columns, row = line % rows;
    const bool bottom = call.shift > 0 && row == rows - 1, right = call.shift > 0 && column == columns - 1;
    const bool rows_split = call.mask == WindowMask::kSwin && bottom;
    const bool columns_split = call.mask == WindowMask::kSwin ? right : bottom;
    masked = rows_split || columns_split;
    count = side * side;
    const std::int64_t image = line / rows * call.height * call.width, edge = side - call.shift;
    for (std::int64_t token = 0; token < padded(count); ++token) {
      const std::int64_t i = token / side, j = token % side;
      const std::int64_t y = row * side + call.shift + i, x = column * side + call.shift + j;
      regions[token] = (rows_split && i >= edge ? 2.0f : 0.0f) + (columns_split && j >= edge ? 1.0f : 0.0f);
      pixels[token] = image + (y < call.height ? y : y - call.height) * call.width;
      pixels[token] += x < call.width ? x : x - call.width;
    }
  }
};

// A head's part of an image whose pixels are `pitch` numbers apart.
template <class T>
struct Image {
  T* data;
  std::int64_t pitch;
  const std::int64_t* pixels;

  RSF_INLINE T* token(std::int64_t index) const { return data + pixels[index] * pitch; }
};

// The next head's numbers follow this one's. Few lines of each of many pixels are read, which no processor foresees.
template <class T>
RSF_INLINE void prefetch_next(const T* token, std::int64_t done, std::int64_t numbers) {
  __builtin_prefetch(token + numbers + done);
}

// Some of a window's tokens as rows [tokens, pitch], of units and with zeros behind them.
template <class Units, class T>
RSF_INLINE void copy_rows(float* rows, std::int64_t pitch, const Image<const T>& image, std::int64_t first,
                          std::int64_t count, std::int64_t numbers) {
  for (std::int64_t i = 0; i < count; ++i) {
    const T* const token = image.token(first + i);
    for (std::int64_t unit = 0; unit * Units::kNumbers < numbers; unit += kLanes) {
      const std::int64_t done = unit * Units::kNumbers;
      prefetch_next(token, done, numbers);
      store(rows + i * pitch + unit, Units::load_units(token + done, numbers - done));
    }
  }
}

// The same transposed [units, kQueries]; there are zeros behind the last token, up to a multiple of kLanes.
template <class Units, class T>
RSF_INLINE void copy_columns(float* columns, const Image<const T>& image, std::int64_t first, std::int64_t count,
                             std::int64_t numbers) {
  const std::int64_t units = (numbers + Units::kNumbers - 1) / Units::kNumbers;
  for (std::int64_t i = 0; i < count; i += kLanes) {
    for (std::int64_t unit = 0; unit < units; unit += kLanes) {
      const std::int64_t done = unit * Units::kNumbers;
      Floats block[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        block[lane] = Floats{};
        if (i + lane >= count) continue;
        const T* const token = image.token(first + i + lane);
        prefetch_next(token, done, numbers);
        block[lane] = Units::load_units(token + done, numbers - done);
      }
      transpose(block);
      for (int lane = 0; lane < kLanes && unit + lane < units; ++lane) {
        store(columns + (unit + lane) * kQueries + i, block[lane]);
      }
    }
  }
}

// The inverse of copy_columns, of numbers of float32: columns [numbers, kQueries] to tokens.
template <class T>
RSF_INLINE void write_columns(const Image<T>& image, const float* columns, std::int64_t first, std::int64_t count,
                              std::int64_t numbers) {
  for (std::int64_t number = 0; number < numbers; number += kLanes) {
    for (std::int64_t i = 0; i < count; i += kLanes) {
      Floats block[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        block[lane] = number + lane < numbers ? load(columns + (number + lane) * kQueries + i) : Floats{};
      }
      transpose(block);
      for (int lane = 0; lane < kLanes && i + lane < count; ++lane) {
        store(image.token(first + i + lane) + number, block[lane], numbers - number);
      }
    }
  }
}

// The inverse of copy_rows, of numbers of float32.
template <class T>
RSF_INLINE void write_rows(const Image<T>& image, const float* rows, std::int64_t pitch, std::int64_t count,
                           std::int64_t numbers) {
  for (std::int64_t i = 0; i < count; ++i) {
    T* const token = image.token(i);
    for (std::int64_t number = 0; number < numbers; number += kLanes) {
      store(token + number, load(rows + i * pitch + number), numbers - number);
    }
  }
}

// Scores [keys, kQueries] of queries from `first` on: k · q, scaled, with bias and mask, times log₂ e.
template <class Units>
RSF_INLINE void score(float* scores, const float* keys, std::int64_t pitch, const float* queries, const float* bias,
                      const WindowAttention& call, const Window& window, std::int64_t first, std::int64_t columns) {
  const std::int64_t units = (call.head_dim + Units::kNumbers - 1) / Units::kNumbers, bias_pitch = padded(window.count);
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

// Products of small matrices for window attention, and its softmax.
//
// Scores are transposed, a row for each key and a column for each query, so that the softmax works on many queries in a
// vector and never sums over lanes. Matrices that are read by vectors have padded columns; left factors, of which one
// unit at a time is broadcast, may have any strides.
//
// Matrices consist of units of 32 bits: a float32 value or, where the processor multiplies them, a pair of bfloat16
// values that are neighbours along the dimension that is summed over.
#pragma once

#include "simd.h"
#include "window_attention.h"

namespace resshift::cpu::RSF_ISA {
namespace {

RSF_INLINE Floats broadcast_word(const float* address) {
#if defined(__aarch64__)
  return broadcast_factor(*address);
#else
  std::uint32_t word;
  std::memcpy(&word, address, sizeof(word));
  return reinterpret_cast<Floats>(word + Words{});
#endif
}

struct Singles {
  static constexpr int kElements = 1;

  template <class T>
  static RSF_INLINE Floats load_units(const T* address, std::int64_t count) {
    return load(address, count);
  }

  static RSF_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
};

#if defined(__AVX512BF16__)
struct Pairs {
  static constexpr int kElements = 2;

  static RSF_INLINE Floats load_units(const BFloat16* address, std::int64_t count) {
    if (count >= 2 * kLanes) return load(reinterpret_cast<const float*>(address));
    BFloat16 rest[2 * kLanes] = {};
    for (std::int64_t i = 0; i < count; ++i) rest[i] = address[i];
    return load(reinterpret_cast<const float*>(rest));
  }

  static RSF_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
    const __m512 sum =
        _mm512_dpbf16_ps(reinterpret_cast<__m512>(c), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
    return reinterpret_cast<Floats>(sum);
  }

  // Pairs of the two values of each lane, rounded.
  static RSF_INLINE Floats pack(Floats first, Floats second) {
    const Words low = reinterpret_cast<Words>(
        _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(first)))));
    const Words high = reinterpret_cast<Words>(
        _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(second)))));
    return reinterpret_cast<Floats>(low | high << 16);
  }
};

template <class T>
struct UnitsOf {
  using Type = Singles;
};
template <>
struct UnitsOf<BFloat16> {
  using Type = Pairs;
};
#else
template <class T>
struct UnitsOf {
  using Type = Singles;
};
#endif

// The left and right factors of a product. A unit of the left one is at data[row · row_pitch + step · step_pitch].
struct Rows {
  const float* data;
  std::int64_t row_pitch, step_pitch;
};

struct Columns {
  const float* data;
  std::int64_t pitch;
};

// Sums that fit the registers beside the factors.
#if defined(__AVX512F__)
constexpr int kTileRows = 8, kTileVectors = 2;
#elif defined(__AVX2__) || defined(__aarch64__)
constexpr int kTileRows = 6, kTileVectors = kRegisters / 16 * 2;
#else
constexpr int kTileRows = 4, kTileVectors = 2;
#endif

template <class Units, int ROWS, int VECTORS, class Finish>
RSF_INLINE void multiply_tile(Rows a, Columns b, std::int64_t steps, std::int64_t row, std::int64_t column,
                              const Finish& finish) {
  Floats sums[ROWS][VECTORS] = {};
  const float* left = a.data + row * a.row_pitch;
  const float* right = b.data + column;
  for (std::int64_t k = 0; k < steps; ++k) {
    Floats factors[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) factors[v] = load(right + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const Floats factor = broadcast_word(left + r * a.row_pitch);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) sums[r][v] = Units::multiply_add(factor, factors[v], sums[r][v]);
    }
    left += a.step_pitch;
    right += b.pitch;
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) finish(row + r, column + v * kLanes, sums[r][v]);
  }
}

template <class Units, int VECTORS, class Finish>
RSF_INLINE void multiply_columns(Rows a, Columns b, std::int64_t steps, std::int64_t rows, std::int64_t column,
                                 const Finish& finish) {
  std::int64_t row = 0;
  for (; row + kTileRows <= rows; row += kTileRows) {
    multiply_tile<Units, kTileRows, VECTORS>(a, b, steps, row, column, finish);
  }
  for (; row + 4 <= rows; row += 4) multiply_tile<Units, 4, VECTORS>(a, b, steps, row, column, finish);
  for (; row < rows; ++row) multiply_tile<Units, 1, VECTORS>(a, b, steps, row, column, finish);
}

// Call finish(row, column, sums) for every vector of a · b: `rows` rows and `columns` columns, a multiple of kLanes.
template <class Units, class Finish>
RSF_INLINE void multiply(Rows a, Columns b, std::int64_t steps, std::int64_t rows, std::int64_t columns,
                         const Finish& finish) {
  std::int64_t column = 0;
  for (; column + kTileVectors * kLanes <= columns; column += kTileVectors * kLanes) {
    multiply_columns<Units, kTileVectors>(a, b, steps, rows, column, finish);
  }
  for (; column < columns; column += kLanes) multiply_columns<Units, 1>(a, b, steps, rows, column, finish);
}

// 2^x within 2 ulp, for x ≤ 0; 2^−126 below −126, NaN for NaN.
RSF_INLINE Floats power_of_two(Floats x) {
  const Floats low = broadcast(-126.0f), magic = broadcast(12582912.0f);
  const Floats clamped = maximum(low, x);
  const Floats shifted = clamped + magic;  // rounds to the nearest integer
  const Floats r = clamped - (shifted - magic);
  Floats p = broadcast(1.3276472e-3f);
  p = p * r + 9.6755419e-3f;
  p = p * r + 5.5507131e-2f;
  p = p * r + 2.4022120e-1f;
  p = p * r + 6.9314694e-1f;
  p = p * r + 1.0000001f;
  return reinterpret_cast<Floats>(reinterpret_cast<Words>(p) + (reinterpret_cast<Words>(shifted) << 23));
}

// Turn scores [keys, kQueries] into probabilities that are still to be divided by total[query].
RSF_INLINE void softmax(float* scores, float* total, std::int64_t keys, std::int64_t columns) {
  for (std::int64_t column = 0; column < columns; column += kLanes) {
    float* const first = scores + column;
    Floats largest = load(first);
    for (std::int64_t key = 1; key < keys; ++key) largest = maximum(largest, load(first + key * kQueries));
    Floats sums = {};
    for (std::int64_t key = 0; key < keys; ++key) {
      const Floats p = power_of_two(load(first + key * kQueries) - largest);
      sums += p;
      store(first + key * kQueries, p);
    }
    store(total + column, sums);
  }
}

}  // namespace
}  // namespace resshift::cpu::RSF_ISA

// Products of small matrices whose sums stay in registers, like those of matrix.h, for float32 and, where the processor
// multiplies it, bfloat16. The caller gets the sums in registers.
//
// Matrices consist of units of 32 bits: a float32 value, or a pair of bfloat16 values that are neighbours along the
// dimension that is summed over. So rows of A are used as they are, and a packed column block of B, kColumns units
// wide, interleaves two rows.
#pragma once

#include <type_traits>

#include "matrix.h"
#include "transpose.h"

namespace resshift::cpu::RSF_ISA {

struct Pair {
  std::uint32_t bits;
};

template <class Unit>
RSF_INLINE constexpr std::int64_t elements_in() {
  return std::is_same_v<Unit, Pair> ? 2 : 1;
}

// The units in which images of an element type are multiplied.
#if defined(__AVX512BF16__)
template <class T>
using UnitOf = std::conditional_t<std::is_same_v<T, BFloat16>, Pair, float>;
#else
template <class T>
using UnitOf = float;
#endif

template <class Unit>
RSF_INLINE std::int64_t units(std::int64_t elements) {
  return divide_up(elements, elements_in<Unit>());
}

RSF_INLINE Floats multiply_add(float a, const float* b, Floats sum) { return broadcast_factor(a) * load(b) + sum; }

#if defined(__AVX512BF16__)
RSF_INLINE Floats multiply_add(Pair a, const Pair* b, Floats sum) {
  const __m512bh factor = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a.bits)));
  const __m512bh columns = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b));
  return reinterpret_cast<Floats>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), factor, columns));
}
#endif

// Rows of units.
template <class Unit>
struct UnitRows {
  const Unit* data;
  std::int64_t stride;
};

// Compute Rows × Vectors·kLanes sums and call finish(row, v, sums) with each vector; finish.prepare(row) is called
// first.
template <int Rows, int Vectors, class Unit, class Finish>
RSF_INLINE void multiply_tile(UnitRows<Unit> a, std::int64_t first, const Unit* b, std::int64_t depth,
                              const Finish& finish) {
  Floats sums[Rows][Vectors] = {};
  const Unit* rows[Rows];
#pragma GCC unroll 16
  for (int row = 0; row < Rows; ++row) {
    rows[row] = a.data + (first + row) * a.stride;
    finish.prepare(first + row);
  }
  for (std::int64_t k = 0; k < depth; ++k) {
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll kColumnVectors
      for (int v = 0; v < Vectors; ++v) {
        sums[row][v] = multiply_add(rows[row][k], b + k * kColumns + v * kLanes, sums[row][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll kColumnVectors
    for (int v = 0; v < Vectors; ++v) finish(first + row, v, sums[row][v]);
  }
}

// A times the first `Vectors` vectors of a column block of B.
template <int Vectors, class Unit, class Finish>
RSF_INLINE void multiply_units(std::int64_t rows, UnitRows<Unit> a, const Unit* b, std::int64_t depth,
                               const Finish& finish) {
  std::int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) multiply_tile<kRows, Vectors>(a, row, b, depth, finish);
  for (; row + 4 <= rows; row += 4) multiply_tile<4, Vectors>(a, row, b, depth, finish);
  for (; row < rows; ++row) multiply_tile<1, Vectors>(a, row, b, depth, finish);
}

// A vector of units from `count` elements, or as many as it holds; others are zero.
template <class Unit, class T>
RSF_INLINE Floats load_units(const T* address, std::int64_t count) {
  if constexpr (elements_in<Unit>() == 1) {
    return load(address, count);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    if (count >= 2 * kLanes) return load(reinterpret_cast<const float*>(address));
    BFloat16 padded[2 * kLanes] = {};
    std::memcpy(padded, address, static_cast<std::size_t>(count) * sizeof(BFloat16));
    return load(reinterpret_cast<const float*>(padded));
  } else {
    BFloat16 rounded[2 * kLanes];
    store(rounded, load(address, count));
    store(rounded + kLanes, count > kLanes ? load(address + kLanes, count - kLanes) : Floats{});
    return load(reinterpret_cast<const float*>(rounded));
  }
}

// Write kLanes elements of a row of units, from element `first` on.
RSF_INLINE void store_elements(float* row, std::int64_t first, Floats value) { store(row + first, value); }
#if defined(__AVX512BF16__)
RSF_INLINE void store_elements(Pair* row, std::int64_t first, Floats value) {
  store(reinterpret_cast<BFloat16*>(row) + first, value);
}
#endif

// Pack kLanes columns of B, given as rows [columns, depth] that lie `stride` elements apart, into one vector of units
// for every step. `packed` is that of the first step, and the next ones follow kColumns units apart. Columns from
// `count` on are zero.
template <class Unit, class T>
RSF_INLINE void pack_columns(const T* rows, std::int64_t stride, std::int64_t count, std::int64_t depth, Unit* packed) {
  const std::int64_t steps = units<Unit>(depth);
  for (std::int64_t step = 0; step < steps; step += kLanes) {
    const std::int64_t first = step * elements_in<Unit>(), there = steps - step < kLanes ? steps - step : kLanes;
    Floats block[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      block[i] = i < count ? load_units<Unit>(rows + i * stride + first, depth - first) : Floats{};
    }
    transpose(block);
    float* const out = reinterpret_cast<float*>(packed + step * kColumns);
    for (std::int64_t i = 0; i < there; ++i) store(out + i * kColumns, block[i]);
  }
}

}  // namespace resshift::cpu::RSF_ISA

// Products of small matrices from registers: C = A B with a few rows of A, and a column block of B that was packed.
#pragma once

#include "simd.h"

namespace resshift::cpu::RSF_ISA {

// Rows and vectors of columns of a result that is kept in registers.
#if defined(__AVX512F__)
constexpr int kRows = 12;
#elif defined(__AVX2__)
constexpr int kRows = 6;
#else
constexpr int kRows = 4;
#endif
constexpr int kColumnVectors = 2;
constexpr int kColumns = kColumnVectors * kLanes;  // width of a packed column block

// Terms that are summed before they are added to the result: a sum of many parts rounds less than one long sum.
constexpr std::int64_t kPart = 64;

// result[row][0 … Vectors·kLanes) = Σ_k a[row][k] b[k][…], added to what is there if `Add`; a's rows are `a_stride`
// apart, and the numbers of a row `a_step`; the result's rows are `result_stride` apart, b's kColumns.
template <int Rows, int Vectors, bool Add>
RSF_INLINE void multiply_rows(const float* a, std::int64_t a_stride, std::int64_t a_step, const float* b,
                              std::int64_t depth, float* result, std::int64_t result_stride) {
  bool add = Add;
  for (std::int64_t begin = 0; begin < depth; begin += kPart, add = true) {
    const std::int64_t end = begin + kPart < depth ? begin + kPart : depth;
    Floats sums[Rows][Vectors] = {};
    for (std::int64_t k = begin; k < end; ++k) {
      Floats columns[Vectors];
      for (int v = 0; v < Vectors; ++v) columns[v] = load(b + k * kColumns + v * kLanes);
      for (int row = 0; row < Rows; ++row) {
        const Floats factor = broadcast(a[row * a_stride + k * a_step]);
        for (int v = 0; v < Vectors; ++v) sums[row][v] += factor * columns[v];
      }
    }
    for (int row = 0; row < Rows; ++row) {
      for (int v = 0; v < Vectors; ++v) {
        float* out = result + row * result_stride + v * kLanes;
        store(out, add ? load(out) + sums[row][v] : sums[row][v]);
      }
    }
  }
}

template <int Vectors, bool Add, int Rows = kRows>
RSF_INLINE void multiply_tail(std::int64_t rows, const float* a, std::int64_t a_stride, std::int64_t a_step,
                              const float* b, std::int64_t depth, float* result, std::int64_t result_stride) {
  if constexpr (Rows > 0) {
    if (rows == Rows) return multiply_rows<Rows, Vectors, Add>(a, a_stride, a_step, b, depth, result, result_stride);
    multiply_tail<Vectors, Add, Rows - 1>(rows, a, a_stride, a_step, b, depth, result, result_stride);
  }
}

// The same for any number of rows.
template <int Vectors, bool Add>
RSF_INLINE void multiply(std::int64_t rows, const float* a, std::int64_t a_stride, std::int64_t a_step, const float* b,
                         std::int64_t depth, float* result, std::int64_t result_stride) {
  // Rows are dealt out evenly: twelve and four of sixteen would leave the second half of them waiting for its loads.
  const std::int64_t blocks = (rows + kRows - 1) / kRows;
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t begin = rows * block / blocks, end = rows * (block + 1) / blocks;
    multiply_tail<Vectors, Add>(end - begin, a + begin * a_stride, a_stride, a_step, b, depth,
                                result + begin * result_stride, result_stride);
  }
}

}  // namespace resshift::cpu::RSF_ISA

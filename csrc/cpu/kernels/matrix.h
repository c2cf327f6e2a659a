// Products of small matrices whose sums stay in registers: C = A B with a few rows of A and a packed column block of B.
#pragma once

#include "../../common/integers.h"
#include "simd.h"

namespace resshift::cpu::RSF_ISA {

// Rows, and vectors of columns, of a result that fits the registers. With short vectors and many registers, four are
// multiplied with each factor, so that loads do not take longer than the products.
#if defined(__AVX512F__)
constexpr int kRows = 12, kColumnVectors = 2;
#elif defined(__AVX2__) || defined(__aarch64__)
constexpr int kRows = 6, kColumnVectors = kRegisters / 16 * 2;
#else
constexpr int kRows = 4, kColumnVectors = 2;
#endif
constexpr int kColumns = kColumnVectors * kLanes;  // width of a packed column block

// Terms that are summed before they are added to the result: adding up partial sums rounds less than one long sum.
constexpr std::int64_t kPart = 64;

// c[row][…] = Σ_k a[row][k] b[k][…] for k < depth. Rows of b are kColumns apart.
struct Product {
  const float* a;
  std::int64_t a_stride, a_step;  // from a row to the next, and from an element of a row to the next
  const float* b;
  std::int64_t depth;
  float* c;
  std::int64_t c_stride;

  RSF_INLINE Product from_row(std::int64_t row) const {
    return {a + row * a_stride, a_stride, a_step, b, depth, c + row * c_stride, c_stride};
  }
};

// The first rows and vectors of columns of a product, added to what is there if `Add`.
template <int Rows, int Vectors, bool Add>
RSF_INLINE void multiply_rows(Product p) {
  bool add = Add;
  for (std::int64_t begin = 0; begin < p.depth; begin += kPart, add = true) {
    const std::int64_t end = begin + kPart < p.depth ? begin + kPart : p.depth;
    Floats sums[Rows][Vectors] = {};
    for (std::int64_t k = begin; k < end; ++k) {
      Floats columns[Vectors];
      for (int v = 0; v < Vectors; ++v) columns[v] = load(p.b + k * kColumns + v * kLanes);
      for (int row = 0; row < Rows; ++row) {
        const Floats factor = broadcast_factor(p.a[row * p.a_stride + k * p.a_step]);
        for (int v = 0; v < Vectors; ++v) sums[row][v] += factor * columns[v];
      }
    }
    for (int row = 0; row < Rows; ++row) {
      for (int v = 0; v < Vectors; ++v) {
        float* out = p.c + row * p.c_stride + v * kLanes;
        store(out, add ? load(out) + sums[row][v] : sums[row][v]);
      }
    }
  }
}

template <int Vectors, bool Add, int Rows = kRows>
RSF_INLINE void multiply_tail(std::int64_t rows, Product p) {
  if constexpr (Rows > 0) {
    if (rows == Rows) return multiply_rows<Rows, Vectors, Add>(p);
    multiply_tail<Vectors, Add, Rows - 1>(rows, p);
  }
}

// The same for any number of rows.
template <int Vectors, bool Add>
RSF_INLINE void multiply(std::int64_t rows, Product p) {
  // Blocks of even size: of 16 rows divided into 12 and 4, the four would wait for their loads.
  const std::int64_t blocks = divide_up(rows, kRows);
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t begin = rows * block / blocks, end = rows * (block + 1) / blocks;
    multiply_tail<Vectors, Add>(end - begin, p.from_row(begin));
  }
}

}  // namespace resshift::cpu::RSF_ISA

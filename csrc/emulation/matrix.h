// A warp's matrix instructions, after the fragment tables of the PTX ISA ("Matrix fragments for mma.m16n8k16",
// "ldmatrix").
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "../common/scalar.h"
#include "emulator.h"

namespace emulation {

struct Product {
  float* d;                // accumulators, read and written
  const std::uint32_t* a;  // 4 registers of two elements each
  const std::uint32_t* b;  // 2 registers
};

template <class T>
float element(const std::uint32_t* registers, int i) {
  return resshift::to_float(T{static_cast<std::uint16_t>(registers[i / 2] >> (i % 2 * 16))});
}

// D += A B with A [16, 16], B [16, 8] and D [16, 8], 16-bit factors and float32 sums.
template <class T>
void mma_16x8x16(float* d, const std::uint32_t* a, const std::uint32_t* b) {
  Product slot{d, a, b};
  warp_operation("mma_16x8x16", 0xffffffffu, &slot, [](void* const slots[kWarpSize]) {
    float matrix_a[16][16], matrix_b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const auto& own = *static_cast<const Product*>(slots[lane]);
      const int group = lane >> 2, thread = lane & 3;
      for (int i = 0; i < 8; ++i) {
        const int row = i % 4 < 2 ? group : group + 8;
        matrix_a[row][thread * 2 + (i & 1) + (i < 4 ? 0 : 8)] = element<T>(own.a, i);
      }
      for (int i = 0; i < 4; ++i) matrix_b[thread * 2 + (i & 1) + (i < 2 ? 0 : 8)][group] = element<T>(own.b, i);
    }
    for (int lane = 0; lane < 32; ++lane) {
      float* own = static_cast<const Product*>(slots[lane])->d;
      const int group = lane >> 2, thread = lane & 3;
      for (int i = 0; i < 4; ++i) {
        const int row = i < 2 ? group : group + 8, column = thread * 2 + (i & 1);
        for (int k = 0; k < 16; ++k) own[i] += matrix_a[row][k] * matrix_b[k][column];
      }
    }
  });
}

struct Rows {
  std::uint32_t* registers;
  const void* row;
};

// Load MATRICES 8 × 8 matrices of 16-bit elements; lane 8 m + r gives the address of row r of matrix m.
template <int MATRICES, bool TRANSPOSED>
void load_matrices(std::uint32_t* registers, const void* row) {
  Rows slot{registers, row};
  warp_operation(
      TRANSPOSED ? "load_matrices_transposed" : "load_matrices", 0xffffffffu, &slot, [](void* const slots[kWarpSize]) {
        for (int m = 0; m < MATRICES; ++m) {
          std::uint16_t matrix[8][8];
          for (int r = 0; r < 8; ++r) {
            const void* address = static_cast<const Rows*>(slots[8 * m + r])->row;
            if (reinterpret_cast<std::uintptr_t>(address) % 16)
              throw std::runtime_error("ldmatrix: a row is not aligned");
            std::memcpy(matrix[r], address, 16);
          }
          for (int lane = 0; lane < 32; ++lane) {
            const int i = lane >> 2, j = (lane & 3) * 2;
            const std::uint16_t low = TRANSPOSED ? matrix[j][i] : matrix[i][j];
            const std::uint16_t high = TRANSPOSED ? matrix[j + 1][i] : matrix[i][j + 1];
            static_cast<const Rows*>(slots[lane])->registers[m] = low | static_cast<std::uint32_t>(high) << 16;
          }
        }
      });
}

}  // namespace emulation

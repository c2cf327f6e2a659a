// Tiles of a product [ROWS, COLUMNS] that a block of four warps computes: by matrix instructions for 16 bits, and in
// float32. Two classes with the same members, so that the kernel is written once.
//
// Both factors have kDepth neighbouring elements in a row of a tile: the first is [ROWS, kDepth], the second, whose
// rows are columns of the product, [COLUMNS, kDepth].
#pragma once

#include "device.h"
#include "matrix.h"

namespace resshift::cuda {

// Each warp has a quarter of the product.
template <class T, int ROWS, int COLUMNS>
struct MatrixProduct {
  using Element = T;
  using Sums = float[ROWS / 32][COLUMNS / 16][4];

  static constexpr int kRows = ROWS, kColumns = COLUMNS, kThreads = 128, kBlocks = 3, kStages = 3;
  static constexpr int kDepth = 64, kChunk = 8, kPitch = kDepth;

  RSF_DEVICE static int first_row() { return static_cast<int>(threadIdx.x) / kWarpSize / 2 * (ROWS / 2); }
  RSF_DEVICE static int first_column() { return static_cast<int>(threadIdx.x) / kWarpSize % 2 * (COLUMNS / 2); }

  // Place of a chunk in a tile, such that the eight rows of a matrix that is loaded lie in different banks.
  RSF_DEVICE static int place(int row, int chunk) { return row * kPitch + (chunk ^ row % 8) * kChunk; }

  RSF_DEVICE static void multiply(Sums& sums, const T* a, const T* b) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
      std::uint32_t left[ROWS / 32][4];
#pragma unroll
      for (int i = 0; i < ROWS / 32; ++i) {
        load_matrices(left[i], a + place(first_row() + 16 * i + lane % 16, 2 * k + lane / 16));
      }
#pragma unroll
      for (int j = 0; j < COLUMNS / 16; j += 2) {
        std::uint32_t right[4];
        load_matrices(right, b + place(first_column() + 8 * j + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
#pragma unroll
        for (int i = 0; i < ROWS / 32; ++i) {
          mma_16x8x16<T>(sums[i][j], left[i], {right[0], right[1]});
          mma_16x8x16<T>(sums[i][j + 1], left[i], {right[2], right[3]});
        }
      }
    }
  }

  // Write sums to rows of float32 in shared memory.
  RSF_DEVICE static void store_sums(float* tile, int pitch, const Sums& sums) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
    for (int i = 0; i < ROWS / 32; ++i) {
#pragma unroll
      for (int j = 0; j < COLUMNS / 16; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = first_row() + 16 * i + 8 * half + lane / 4, column = first_column() + 8 * j + lane % 4 * 2;
          store_vector(tile + row * pitch + column, Vector<float, 2>{{sums[i][j][2 * half], sums[i][j][2 * half + 1]}});
        }
      }
    }
  }
};

// 128 threads in 8 rows of 16: a thread has ROWS / 8 neighbouring rows and COLUMNS / 16 columns, 16 apart.
template <int ROWS, int COLUMNS>
struct FloatProduct {
  using Element = float;
  using Sums = float[ROWS / 8][COLUMNS / 16];

  static constexpr int kRows = ROWS, kColumns = COLUMNS, kThreads = 128, kBlocks = 4, kStages = 2;
  static constexpr int kDepth = 32, kChunk = 4, kPitch = kDepth + 4;  // eight rows' chunks lie in different banks

  RSF_DEVICE static int row(int i) { return static_cast<int>(threadIdx.x) / 16 * (ROWS / 8) + i; }
  RSF_DEVICE static int column(int j) { return static_cast<int>(threadIdx.x) % 16 + 16 * j; }
  RSF_DEVICE static int place(int row, int chunk) { return row * kPitch + chunk * kChunk; }

  RSF_DEVICE static void multiply(Sums& sums, const float* a, const float* b) {
#pragma unroll 2
    for (int k = 0; k < kDepth; k += 4) {
      Vector<float, 4> right[COLUMNS / 16];
#pragma unroll
      for (int j = 0; j < COLUMNS / 16; ++j) right[j] = load_vector<4>(b + column(j) * kPitch + k);
#pragma unroll
      for (int i = 0; i < ROWS / 8; ++i) {
        const auto left = load_vector<4>(a + row(i) * kPitch + k);
#pragma unroll
        for (int j = 0; j < COLUMNS / 16; ++j) {
#pragma unroll
          for (int n = 0; n < 4; ++n) sums[i][j] = fmaf(left[n], right[j][n], sums[i][j]);
        }
      }
    }
  }

  RSF_DEVICE static void store_sums(float* tile, int pitch, const Sums& sums) {
#pragma unroll
    for (int i = 0; i < ROWS / 8; ++i) {
#pragma unroll
      for (int j = 0; j < COLUMNS / 16; ++j) tile[row(i) * pitch + column(j)] = sums[i][j];
    }
  }
};

}  // namespace resshift::cuda

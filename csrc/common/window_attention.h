// The arguments of window attention, and its mask; ops/window_attention.py has the formulas.
#pragma once

#include <cstdint>

#include "platform.h"
#include "scalar.h"

namespace resshift {

// In the order of ops.window_attention.MASKS.
enum class WindowMask : std::int32_t { kResshift, kSwin };

// Of forward and backward. Tensors are contiguous, images 16-byte aligned.
struct WindowAttention {
  const void* qkv;           // [B, height, width, 3 · heads · head_dim], last dimension (q | k | v, head, head_dim)
  const void* table;         // [(2 · window − 1)², heads]
  Dtype dtype, table_dtype;  // the table's is float32 or the image's
  std::int64_t batch, height, width;
  std::int32_t heads, head_dim, window, shift;  // 0 ≤ shift < window
  WindowMask mask;

  RSF_INLINE std::int64_t windows() const { return batch * (height / window) * (width / window); }
  RSF_INLINE std::int32_t span() const { return 2 * window - 1; }
};

// Gradients, and scratch memory between kernels; the caller allocates both.
struct WindowAttentionGradients {
  const void* dout;  // [B, height, width, heads · head_dim], like qkv
  void* dqkv;        // like qkv
  float* dtable;     // [(2 · window − 1)², heads]
  float* scratch;    // of the size that the device's window_attention_scratch returns
};

// Scores carry a factor log₂ e, because 2^x is what a GPU has an instruction for and what takes fewest operations on a
// CPU.
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kMaskScore = -100.0f * kLog2E;  // added to the score of two tokens that do not see each other

// The regions of one window: only tokens of the same region see each other. A shifted window at the bottom or right
// edge of the image continues at the opposite edge, from row or column `edge` on.
struct WindowRegions {
  int edge;
  bool rows_split, columns_split;  // whether the rows, and the columns, from `edge` on are regions of their own

  // Of the window of `side` pixels at `row` of `rows` and `column` of `columns` windows. Set in place: CUDA kernels
  // that copy a structure which a function returns need up to 9 registers more, and some spill.
  RSF_INLINE void set(const WindowAttention& call, int side, unsigned row, unsigned rows, unsigned column,
                      unsigned columns) {
    edge = side - call.shift;
    const bool bottom = call.shift > 0 && row == rows - 1, right = call.shift > 0 && column == columns - 1;
    rows_split = call.mask == WindowMask::kSwin && bottom;
    columns_split = call.mask == WindowMask::kSwin ? right : bottom;
  }

  RSF_INLINE bool several() const { return rows_split || columns_split; }

  RSF_INLINE int of(int row, int column) const {
    return (rows_split && row >= edge ? 2 : 0) + (columns_split && column >= edge ? 1 : 0);
  }
};

}  // namespace resshift

// What window attention is called with; ops/window_attention.py has the formulas.
#pragma once

#include <cstdint>

#include "platform.h"
#include "scalar.h"

namespace resshift {

// As in resshift_fast/ops/window_attention.py.
enum class WindowMask : std::int32_t { kResshift, kSwin };

// What forward and backward are called with. Tensors are contiguous, images 16-byte aligned.
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

// Gradients, and memory for what the kernels hand on to one another; the caller allocates all of it.
struct WindowAttentionGradients {
  const void* dout;  // [B, height, width, heads · head_dim], like qkv
  void* dqkv;        // like qkv
  float* dtable;     // [(2 · window − 1)², heads]
  float* scratch;    // window_attention_scratch(call) numbers
};

}  // namespace resshift

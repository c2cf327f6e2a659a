// Launchers of window attention's kernels; they return the cudaError_t of the launch. ops/window_attention.py has the
// formulas.
#pragma once

#include <cstdint>

#include "../common/platform.h"
#include "../common/scalar.h"

namespace resshift {

// As in resshift_fast/ops/window_attention.py.
enum class WindowMask : std::int32_t { kResshift, kSwin };

// What forward and backward are called with. Tensors are contiguous, images 16-byte aligned.
struct WindowAttention {
  const void* qkv;    // [B, height, width, 3 · heads · head_dim], last dimension (q | k | v, head, head_dim)
  const void* table;  // [(2 · window − 1)², heads]
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

namespace cuda {

// Windows of 4 to 16 pixels and heads of 16, 32 or 64 numbers, fewer blocks than a grid may have.
bool window_attention_supported(const WindowAttention& call);

// out [B, height, width, heads · head_dim], like qkv
int window_attention(const WindowAttention& call, void* out, void* stream);

std::int64_t window_attention_scratch(const WindowAttention& call);
int window_attention_backward(const WindowAttention& call, const WindowAttentionGradients& gradients, void* stream);

}  // namespace cuda
}  // namespace resshift

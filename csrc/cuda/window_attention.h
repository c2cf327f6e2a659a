// Launchers of window attention's kernels; they return the cudaError_t of the launch. ops/window_attention.py has the
// formulas.
#pragma once

#include "../common/window_attention.h"

namespace resshift::cuda {

// Windows of 4 to 16 pixels and heads of 16, 32 or 64 numbers, fewer blocks than a grid may have.
bool window_attention_supported(const WindowAttention& call);

// out [B, height, width, heads · head_dim], like qkv
int window_attention(const WindowAttention& call, void* out, void* stream);

std::int64_t window_attention_scratch(const WindowAttention& call);
int window_attention_backward(const WindowAttention& call, const WindowAttentionGradients& gradients, void* stream);

}  // namespace resshift::cuda

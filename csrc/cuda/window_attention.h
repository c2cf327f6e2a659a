// Launchers of window attention's kernels; they return the cudaError_t of the launch. ops/window_attention.py has the
// formulas.
#pragma once

#include "../common/window_attention.h"

namespace resshift::cuda {

constexpr std::int64_t kMinWindow = 4;

// Whether windows are kMinWindow to 16 pixels and heads 16, 32 or 64 channels wide, and a grid can hold the blocks.
bool window_attention_supported(const WindowAttention& call);

// out [B, height, width, heads · head_dim], like qkv
int window_attention(const WindowAttention& call, void* out, void* stream);

std::int64_t window_attention_scratch(const WindowAttention& call);
int window_attention_backward(const WindowAttention& call, const WindowAttentionGradients& gradients, void* stream);

}  // namespace resshift::cuda

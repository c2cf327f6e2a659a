// Window attention and its gradients on the CPU; ops/window_attention.py has the formulas.
#pragma once

#include "../common/window_attention.h"

namespace resshift::cpu {

// out [B, height, width, heads · head_dim], like qkv
void window_attention(const WindowAttention& call, void* out);

std::int64_t window_attention_scratch(const WindowAttention& call);
void window_attention_backward(const WindowAttention& call, const WindowAttentionGradients& gradients);

}  // namespace resshift::cpu

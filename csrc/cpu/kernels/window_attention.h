// Window attention and its gradients on the CPU, for a part of the windows and heads of a call. ops/window_attention.py
// has the formulas.
//
// Kernels work on one window and head at a time, of at most 16 × 16 tokens, and on at most kQueries of its queries at
// once; the caller brings the memory that they work in.
#pragma once

#include "../../common/window_attention.h"
#include "../isa.h"

namespace resshift::cpu {

constexpr std::int64_t kMaxWindow = 16, kMaxTokens = kMaxWindow * kMaxWindow, kMaxEntries = 31 * 31;
constexpr std::int64_t kQueries = 64;
constexpr std::int64_t kMaxParts = 32;  // that the windows are divided into to sum up the gradient of the bias table

// Up to the next multiple of the widest vector.
RSF_INLINE std::int64_t padded(std::int64_t numbers) { return (numbers + 15) / 16 * 16; }

RSF_INLINE std::int64_t tokens(const WindowAttention& call) {
  return static_cast<std::int64_t>(call.window) * call.window;
}

RSF_INLINE std::int64_t entries(const WindowAttention& call) {
  return static_cast<std::int64_t>(call.span()) * call.span();
}

// Biases of all pairs of tokens, [heads, keys, padded queries].
RSF_INLINE std::int64_t bias_numbers(const WindowAttention& call) {
  return call.heads * tokens(call) * padded(tokens(call));
}

// What one thread works in.
RSF_INLINE std::int64_t forward_scratch(const WindowAttention& call) {
  const std::int64_t head = padded(call.head_dim), count = padded(tokens(call));
  return 2 * count * head + kQueries * (head + count);
}

RSF_INLINE std::int64_t backward_scratch(const WindowAttention& call) {
  const std::int64_t head = padded(call.head_dim), count = padded(tokens(call));
  return 5 * count * head + kQueries * (4 * head + 2 * count) + count * count;
}

// Parts of the windows, the same for any number of threads.
RSF_INLINE std::int64_t windows_each(const WindowAttention& call) {
  return (call.windows() + kMaxParts - 1) / kMaxParts;
}

RSF_INLINE std::int64_t parts(const WindowAttention& call) {
  return (call.windows() + windows_each(call) - 1) / windows_each(call);
}

RSF_FOR_EVERY_ISA(
    // Biases [heads, keys, padded queries] of heads [begin, end), as the kernels below take them.
    void expand_bias(const WindowAttention& call, float* bias, std::int64_t begin, std::int64_t end);

    // out [B, height, width, heads · head_dim], like qkv, of windows × heads, counted window by window.
    void window_attention(const WindowAttention& call, const float* bias, void* out, float* scratch, std::int64_t begin,
                          std::int64_t end);

    // dqkv, and the bias table's gradients [parts, heads, entries] in gradients.scratch, of parts × heads.
    void window_attention_backward(const WindowAttention& call, const WindowAttentionGradients& gradients,
                                   const float* bias, float* scratch, std::int64_t begin, std::int64_t end);

    // dtable from the parts.
    void sum_bias_gradient(const WindowAttention& call, const WindowAttentionGradients& gradients);)

}  // namespace resshift::cpu

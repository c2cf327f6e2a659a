// Stages of window attention and its gradients, each for some windows and heads of a call.
//
// Kernels work on one window and head at a time, of at most 16 × 16 tokens, and on at most kQueries of its queries at
// once; the caller provides the scratch memory.
#pragma once

#include "../../common/integers.h"
#include "../isa.h"
#include "../window_attention.h"

namespace resshift::cpu {

constexpr std::int64_t kMaxWindow = 16, kMaxTokens = kMaxWindow * kMaxWindow, kMaxEntries = 31 * 31;
constexpr std::int64_t kQueries = 64;
constexpr std::int64_t kMaxParts = 32;  // of the windows; the bias table's gradient is summed in each

// Up to the next multiple of the widest vector.
RSF_INLINE std::int64_t padded(std::int64_t size) { return round_up(size, 16); }

RSF_INLINE std::int64_t tokens(const WindowAttention& call) {
  return static_cast<std::int64_t>(call.window) * call.window;
}

RSF_INLINE std::int64_t entries(const WindowAttention& call) {
  return static_cast<std::int64_t>(call.span()) * call.span();
}

// Biases of all pairs of tokens, [heads, keys, padded queries].
RSF_INLINE std::int64_t bias_size(const WindowAttention& call) {
  return call.heads * tokens(call) * padded(tokens(call));
}

// Floats of a thread's scratch memory.
RSF_INLINE std::int64_t forward_scratch(const WindowAttention& call) {
  const std::int64_t head = padded(call.head_dim), count = padded(tokens(call));
  return 2 * count * head + kQueries * (head + count);
}

RSF_INLINE std::int64_t backward_scratch(const WindowAttention& call) {
  const std::int64_t head = padded(call.head_dim), count = padded(tokens(call));
  return 5 * count * head + kQueries * (4 * head + 2 * count) + count * count;
}

// Parts of the windows, the same for any number of threads.
RSF_INLINE std::int64_t windows_each(const WindowAttention& call) { return divide_up(call.windows(), kMaxParts); }

RSF_INLINE std::int64_t parts(const WindowAttention& call) { return divide_up(call.windows(), windows_each(call)); }

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

#include "window_attention.h"

#include "kernels/window_attention.h"
#include "parallel.h"
#include "workspace.h"

namespace resshift::cpu {
namespace {

// Multiplications that a thread takes at least: about those of one head of an 8 × 8 window.
constexpr std::int64_t kGrain = 1 << 17;

void expand(const WindowAttention& call, float* bias) {
  const auto kernel = RSF_KERNEL(expand_bias);
  const std::int64_t grain = 1 + kGrain / bias_size(call) * call.heads;
  parallel_for(0, call.heads, grain, [&](std::int64_t begin, std::int64_t end) { kernel(call, bias, begin, end); });
}

}  // namespace

void window_attention(const WindowAttention& call, void* out) {
  const auto kernel = RSF_KERNEL(window_attention);
  const Workspace bias(bias_size(call));
  expand(call, bias.data());
  const std::int64_t grain = 1 + kGrain / (tokens(call) * tokens(call) * call.head_dim + 1);
  parallel_for(0, call.windows() * call.heads, grain, [&](std::int64_t begin, std::int64_t end) {
    const Workspace scratch(forward_scratch(call));
    kernel(call, bias.data(), out, scratch.data(), begin, end);
  });
}

std::int64_t window_attention_scratch(const WindowAttention& call) { return parts(call) * call.heads * entries(call); }

void window_attention_backward(const WindowAttention& call, const WindowAttentionGradients& gradients) {
  const auto kernel = RSF_KERNEL(window_attention_backward);
  const auto sum = RSF_KERNEL(sum_bias_gradient);
  const Workspace bias(bias_size(call));
  expand(call, bias.data());
  parallel_for(0, parts(call) * call.heads, 1, [&](std::int64_t begin, std::int64_t end) {
    const Workspace scratch(backward_scratch(call));
    kernel(call, gradients, bias.data(), scratch.data(), begin, end);
  });
  sum(call, gradients);
}

}  // namespace resshift::cpu

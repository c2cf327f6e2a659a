// Window attention and its gradients on CPU tensors.
#include "../cpu/kernels/window_attention.h"

#include "../cpu/parallel.h"
#include "window_attention.h"
#include "../cpu/workspace.h"

namespace resshift::bindings {
namespace {

using namespace resshift::cpu;

// Multiplications that a thread takes at least: about those of one head of an 8 × 8 window.
constexpr int64_t kGrain = 1 << 17;

void expand(const WindowAttention& call, float* bias) {
  const auto kernel = RSF_KERNEL(expand_bias);
  const int64_t grain = 1 + kGrain / bias_numbers(call) * call.heads;
  parallel_for(0, call.heads, grain, [&](int64_t begin, int64_t end) { kernel(call, bias, begin, end); });
}

struct Cpu {
  static constexpr int64_t kMinWindow = 1;

  explicit Cpu(const Tensor& x) { STD_TORCH_CHECK(x.is_cpu(), "the first argument must be on the CPU"); }

  static void check(const WindowAttention&) {}

  static Tensor readable(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

  static int64_t scratch(const WindowAttention& call) { return parts(call) * call.heads * entries(call); }

  void run(const WindowAttention& call, void* out) const {
    const auto kernel = RSF_KERNEL(window_attention);
    const Workspace bias(bias_numbers(call));
    expand(call, bias.data());
    const int64_t grain = 1 + kGrain / (tokens(call) * tokens(call) * call.head_dim + 1);
    parallel_for(0, call.windows() * call.heads, grain, [&](int64_t begin, int64_t end) {
      const Workspace scratch(forward_scratch(call));
      kernel(call, bias.data(), out, scratch.data(), begin, end);
    });
  }

  void run(const WindowAttention& call, const WindowAttentionGradients& gradients) const {
    const auto kernel = RSF_KERNEL(window_attention_backward);
    const auto sum = RSF_KERNEL(sum_bias_gradient);
    const Workspace bias(bias_numbers(call));
    expand(call, bias.data());
    parallel_for(0, parts(call) * call.heads, 1, [&](int64_t begin, int64_t end) {
      const Workspace scratch(backward_scratch(call));
      kernel(call, gradients, bias.data(), scratch.data(), begin, end);
    });
    sum(call, gradients);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cpu, library) { define_window_attention(library); }

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cpu, CPU, library) { implement_window_attention<Cpu>(library); }

}  // namespace resshift::bindings

// Window attention and its gradients on CPU tensors.
#include "../cpu/window_attention.h"

#include "cpu.h"
#include "window_attention.h"

namespace resshift::bindings {
namespace {

struct Cpu : OnCpu {
  using OnCpu::OnCpu;

  static constexpr int64_t kMinWindow = 1;

  static void check_call(const WindowAttention&) {}

  static Tensor readable(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

  static int64_t scratch(const WindowAttention& call) { return cpu::window_attention_scratch(call); }

  void run(const WindowAttention& call, void* out) const { cpu::window_attention(call, out); }

  void run(const WindowAttention& call, const WindowAttentionGradients& gradients) const {
    cpu::window_attention_backward(call, gradients);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cpu, library) { define_window_attention(library); }

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cpu, CPU, library) { implement_window_attention<Cpu>(library); }

}  // namespace resshift::bindings

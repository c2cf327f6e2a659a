// Window attention and its gradients on CUDA tensors.
#include "../cuda/window_attention.h"

#include "cuda.h"
#include "window_attention.h"

namespace resshift::bindings {
namespace {

struct Cuda : OnCuda {
  using OnCuda::OnCuda;

  static constexpr int64_t kMinWindow = cuda::kMinWindow;

  static void check_call(const WindowAttention& call) {
    STD_TORCH_CHECK(call.head_dim == 16 || call.head_dim == 32 || call.head_dim == 64,
                    "heads must be 16, 32 or 64 wide, got ", call.head_dim);
    STD_TORCH_CHECK(cuda::window_attention_supported(call), "there are too many windows for one launch");
  }

  static Tensor readable(const Tensor& x) { return bindings::readable(x); }

  static int64_t scratch(const WindowAttention& call) { return cuda::window_attention_scratch(call); }

  void run(const WindowAttention& call, void* out) const { check(cuda::window_attention(call, out, stream())); }

  void run(const WindowAttention& call, const WindowAttentionGradients& gradients) const {
    check(cuda::window_attention_backward(call, gradients, stream()));
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cuda, library) { define_window_attention(library); }

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cuda, RSF_CUDA_KEY, library) { implement_window_attention<Cuda>(library); }

}  // namespace resshift::bindings

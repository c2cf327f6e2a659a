// Group normalization and its gradient on CUDA tensors.
#include "../cuda/group_norm.h"

#include "cuda.h"
#include "group_norm.h"

namespace resshift::bindings {
namespace {

struct Cuda {
  using Forward = cuda::GroupNorm;
  using Backward = cuda::GroupNormBackward;

  explicit Cuda(const Tensor& x) : launcher(x) {}

  static int64_t scratch(const Forward& call) { return cuda::group_norm_scratch(call); }
  static int64_t scratch(const Backward& call) { return cuda::group_norm_backward_scratch(call); }
  void operator()(const Forward& call) const { Launcher::check(cuda::group_norm(call, launcher.stream())); }
  void operator()(const Backward& call) const { Launcher::check(cuda::group_norm_backward(call, launcher.stream())); }

  const Launcher launcher;
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cuda, library) { define_group_norm(library); }

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cuda, RSF_CUDA_KEY, library) { implement_group_norm<Cuda>(library); }

}  // namespace resshift::bindings

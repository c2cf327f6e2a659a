// Group normalization and its gradient on CUDA tensors.
#include "../cuda/group_norm.h"

#include "cuda.h"
#include "group_norm.h"

namespace resshift::bindings {
namespace {

struct Cuda : OnCuda {
  using OnCuda::OnCuda;

  static int64_t scratch(const GroupNorm& call) { return cuda::group_norm_scratch(call); }
  static int64_t scratch(const GroupNormBackward& call) { return cuda::group_norm_backward_scratch(call); }
  void run(const GroupNorm& call) const { check(cuda::group_norm(call, stream())); }
  void run(const GroupNormBackward& call) const { check(cuda::group_norm_backward(call, stream())); }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cuda, library) { define_group_norm(library); }

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cuda, RSF_CUDA_KEY, library) { implement_group_norm<Cuda>(library); }

}  // namespace resshift::bindings

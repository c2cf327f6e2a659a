// The residual shift on CUDA tensors.
#include "../cuda/residual_shift.h"

#include "cuda.h"
#include "residual_shift.h"

namespace resshift::bindings {
namespace {

struct Cuda : OnCuda {
  using OnCuda::OnCuda;

  void run(const ChainStep& call) const { check(cuda::chain_step(call, stream())); }
  void run(const QSample& call) const { check(cuda::q_sample(call, stream())); }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cuda, library) { define_residual_shift(library); }

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cuda, RSF_CUDA_KEY, library) { implement_residual_shift<Cuda>(library); }

}  // namespace resshift::bindings

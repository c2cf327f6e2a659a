// The residual shift on CUDA tensors.
#include "../cuda/residual_shift.h"

#include "cuda.h"
#include "residual_shift.h"

namespace resshift::bindings {
namespace {

struct Cuda {
  explicit Cuda(const Tensor& x) : launcher(x) {}

  void operator()(const ChainStep& call) const { Launcher::check(cuda::chain_step(call, launcher.stream())); }
  void operator()(const QSample& call) const { Launcher::check(cuda::q_sample(call, launcher.stream())); }

  Launcher launcher;
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cuda, library) { define_residual_shift(library); }

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cuda, RSF_CUDA_KEY, library) { implement_residual_shift<Cuda>(library); }

}  // namespace resshift::bindings

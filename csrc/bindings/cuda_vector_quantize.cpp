// Vector quantization of CUDA tensors.
#include "vector_quantize.h"

#include "../cuda/vector_quantize.h"
#include "cuda.h"

namespace resshift::bindings {
namespace {

struct Cuda {
  using Call = VectorQuantize;

  explicit Cuda(const Tensor& x) : launcher(x) {}

  void run(const Call& call) const { Launcher::check(cuda::vector_quantize(call, launcher.stream())); }

  Launcher launcher;
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cuda, library) { define_vector_quantize(library); }

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cuda, RSF_CUDA_KEY, library) {
  library.impl("vector_quantize", TORCH_BOX(&vector_quantize<Cuda>));
}

}  // namespace resshift::bindings

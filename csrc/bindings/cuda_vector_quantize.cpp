// Vector quantization of CUDA tensors.
#include "../cuda/vector_quantize.h"

#include "cuda.h"
#include "vector_quantize.h"

namespace resshift::bindings {
namespace {

struct Cuda : OnCuda {
  using OnCuda::OnCuda;

  void run(const VectorQuantize& call) const { check(cuda::vector_quantize(call, stream())); }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cuda, library) { define_vector_quantize(library); }

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cuda, RSF_CUDA_KEY, library) {
  library.impl("vector_quantize", TORCH_BOX(&vector_quantize<Cuda>));
}

}  // namespace resshift::bindings

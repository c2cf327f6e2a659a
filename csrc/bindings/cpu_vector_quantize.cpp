// Vector quantization of CPU tensors.
#include "../cpu/vector_quantize.h"

#include "cpu.h"
#include "vector_quantize.h"

namespace resshift::bindings {
namespace {

struct Cpu : OnCpu {
  using OnCpu::OnCpu;

  void run(const VectorQuantize& call) const { cpu::vector_quantize(call); }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cpu, library) { define_vector_quantize(library); }

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cpu, CPU, library) {
  library.impl("vector_quantize", TORCH_BOX(&vector_quantize<Cpu>));
}

}  // namespace resshift::bindings

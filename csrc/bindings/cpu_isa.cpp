// The instruction set of the CPU kernels, and a limit to it for tests.
#include "../cpu/isa.h"

#include "tensors.h"

namespace resshift::bindings {
namespace {

int64_t isa() { return static_cast<int64_t>(cpu::isa()); }

int64_t limit_isa(int64_t limit) {
  STD_TORCH_CHECK(limit >= 0 && limit <= 4,
                  "the limit must be 0 (portable), 1 (AVX2), 2 (AVX-512), 3 (with bfloat16) or 4 (NEON)");
  cpu::limit_isa(static_cast<cpu::Isa>(limit));
  return isa();
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cpu, library) {
  library.def("isa() -> int");
  library.def("limit_isa(int limit) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cpu, CompositeExplicitAutograd, library) {
  library.impl("isa", TORCH_BOX(&isa));
  library.impl("limit_isa", TORCH_BOX(&limit_isa));
}

}  // namespace resshift::bindings

// Concatenation of the channels of two CPU tensors, the second one after a leaky ReLU.
#include "../cpu/concat.h"

#include "cpu.h"

namespace resshift::bindings {
namespace {

Tensor concat(Tensor x, Tensor other, double slope) {
  STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0, "x must be [B, C, H, W] and not empty");
  const OnCpu device(x);
  STD_TORCH_CHECK(other.is_cpu() && other.scalar_type() == x.scalar_type(), "other must be on the CPU, in x's dtype");
  STD_TORCH_CHECK(other.dim() == 4 && other.numel() > 0 && other.size(0) == x.size(0) && other.size(2) == x.size(2) &&
                      other.size(3) == x.size(3),
                  "other must be shaped like x, but for the channels");
  const Tensor first = channels_last(x), second = channels_last(other);
  Tensor y = empty_channels_last(x, x.size(1) + other.size(1), x.size(2), x.size(3));
  cpu::concat({first.const_data_ptr(), second.const_data_ptr(), y.mutable_data_ptr(), x.size(0) * x.size(2) * x.size(3),
               x.size(1), other.size(1), dtype_of(x, "x"), static_cast<float>(slope)});
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cpu, library) {
  library.def("concat(Tensor x, Tensor other, float slope) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cpu, CPU, library) { library.impl("concat", TORCH_BOX(&concat)); }

}  // namespace resshift::bindings

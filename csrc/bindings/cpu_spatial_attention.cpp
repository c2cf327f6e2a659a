// Attention between all pixels of images on CPU tensors.
#include "../cpu/spatial_attention.h"

#include "cpu.h"

namespace resshift::bindings {
namespace {

Tensor spatial_attention(Tensor q, Tensor k, Tensor v) {
  STD_TORCH_CHECK(q.is_cpu() && q.dim() == 4 && q.numel() > 0, "q must be [B, C, H, W] on the CPU and not empty");
  check_like(k, q, "k");
  check_like(v, q, "v");
  STD_TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(),
                  "k and v must have q's dtype");
  const Tensor queries = channels_last(q), keys = channels_last(k), values = channels_last(v);
  ImageLike out(q);
  cpu::spatial_attention({queries.const_data_ptr(), keys.const_data_ptr(), values.const_data_ptr(), out.data(),
                          dtype_of(q, "q"), q.size(0), q.size(2) * q.size(3), q.size(1)});
  return out.finished();
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cpu, library) {
  library.def("spatial_attention(Tensor q, Tensor k, Tensor v) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cpu, CPU, library) {
  library.impl("spatial_attention", TORCH_BOX(&spatial_attention));
}

}  // namespace resshift::bindings

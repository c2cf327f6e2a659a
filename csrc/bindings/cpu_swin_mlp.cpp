// The MLP of a Swin block on CPU tensors.
#include "../cpu/swin_mlp.h"

#include "cpu.h"

namespace resshift::bindings {
namespace {

Tensor swin_mlp(Tensor x, Tensor normalization, Tensor w1, Tensor b1, Tensor w2, Tensor b2) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 4 && x.numel() > 0, "x must be [B, C, H, W] on the CPU and not empty");
  STD_TORCH_CHECK(w1.dim() == 2 && w1.size(0) > 0, "w1 must be [hidden, C] and not empty");
  cpu::SwinMlp call{};
  call.batch = x.size(0);
  call.channels = x.size(1);
  call.pixels = x.size(2) * x.size(3);
  call.hidden = w1.size(0);
  call.dtype = dtype_of(x, "x");
  const Tensor image = channels_last(x), statistics = normalization_of(normalization, x);
  const Tensor weights[] = {parameter(w1, {call.hidden, call.channels}, "w1"),
                            parameter(w2, {call.channels, call.hidden}, "w2")};
  const Tensor biases[] = {parameter(b1, {call.hidden}, "b1"), parameter(b2, {call.channels}, "b2")};
  ImageLike y(x);
  call.x = image.const_data_ptr();
  call.normalization = static_cast<const float*>(statistics.const_data_ptr());
  call.w1 = weights[0].const_data_ptr();
  call.w2 = weights[1].const_data_ptr();
  call.b1 = biases[0].const_data_ptr();
  call.b2 = biases[1].const_data_ptr();
  call.y = y.data();
  call.w1_dtype = dtype_of(weights[0], "w1");
  call.w2_dtype = dtype_of(weights[1], "w2");
  call.b1_dtype = dtype_of(biases[0], "b1");
  call.b2_dtype = dtype_of(biases[1], "b2");
  cpu::swin_mlp(call);
  return y.finished();
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cpu, library) {
  library.def("swin_mlp(Tensor x, Tensor normalization, Tensor w1, Tensor b1, Tensor w2, Tensor b2) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cpu, CPU, library) { library.impl("swin_mlp", TORCH_BOX(&swin_mlp)); }

}  // namespace resshift::bindings

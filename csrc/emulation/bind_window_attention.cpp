#include "../cuda/window_attention.h"
#include "bindings.h"

namespace emulation {

using namespace resshift;

namespace {

WindowAttention call_of(const Array& qkv, const Array& table, int heads, int window, int shift, bool swin) {
  if (qkv.ndim() != 4 || table.ndim() != 2) throw std::runtime_error("qkv has 4 axes, the table 2");
  const WindowAttention call{qkv.data(),      table.data(), dtype_of(qkv),
                             dtype_of(table), qkv.shape(0), qkv.shape(1),
                             qkv.shape(2),    heads,        static_cast<std::int32_t>(qkv.shape(3) / 3 / heads),
                             window,          shift,        swin ? WindowMask::kSwin : WindowMask::kResshift};
  if (!cuda::window_attention_supported(call)) throw std::runtime_error("the kernels do not support this call");
  return call;
}

}  // namespace

void bind_window_attention(py::module_& module) {
  module.def("window_attention_scratch", [](const Array& qkv, const Array& table, int heads, int window) {
    return cuda::window_attention_scratch(call_of(qkv, table, heads, window, 0, false));
  });
  module.def(
      "window_attention_backward", [](const Array& dout, const Array& qkv, const Array& table, int heads, int window,
                                      int shift, bool swin, Array& dqkv, Array& dtable, Array& scratch) {
        const WindowAttentionGradients gradients{dout.data(), dqkv.mutable_data(),
                                                 static_cast<float*>(dtable.mutable_data()),
                                                 static_cast<float*>(scratch.mutable_data())};
        check(cuda::window_attention_backward(call_of(qkv, table, heads, window, shift, swin), gradients, nullptr));
      });
  module.def("window_attention", [](const Array& qkv, const Array& table, int heads, int window, int shift, bool swin,
                                    Array& out) {
    check(cuda::window_attention(call_of(qkv, table, heads, window, shift, swin), out.mutable_data(), nullptr));
  });
}

}  // namespace emulation

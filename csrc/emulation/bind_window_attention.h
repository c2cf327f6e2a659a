#pragma once

#include "../bindings/window_attention_call.h"
#include "../cuda/window_attention.h"
#include "bindings.h"

namespace emulation {

using namespace resshift;

inline WindowAttention call_of(const Array& qkv, const Array& table, int heads, int window, int shift, bool swin) {
  // Smaller windows than the kernels take are left to window_attention_supported, so that tests see it refuse them.
  const WindowAttention call = bindings::window_attention_call(qkv, table, heads, window, shift, swin, 1);
  if (!cuda::window_attention_supported(call)) throw std::runtime_error("the kernels do not support this call");
  return call;
}

inline void bind_window_attention(py::module_& module) {
  module.def("window_attention_scratch", [](const Array& qkv, const Array& table, int heads, int window) {
    return cuda::window_attention_scratch(call_of(qkv, table, heads, window, 0, false));
  });
  module.def("window_attention_backward",
             [](const Array& dout, const Array& qkv, const Array& table, int heads, int window, int shift, bool swin,
                Array& dqkv, Array& dtable, Array& scratch) {
               const auto gradients = bindings::window_attention_gradients(dout, dqkv, dtable, scratch);
               const WindowAttention call = call_of(qkv, table, heads, window, shift, swin);
               check(cuda::window_attention_backward(call, gradients, nullptr));
             });
  module.def("window_attention", [](const Array& qkv, const Array& table, int heads, int window, int shift, bool swin,
                                    Array& out) {
    check(cuda::window_attention(call_of(qkv, table, heads, window, shift, swin), out.mutable_data(), nullptr));
  });
}

}  // namespace emulation

#pragma once

#include <vector>

#include "../bindings/window_attention_proj_call.h"
#include "../cuda/window_attention.h"
#include "../cuda/window_attention_proj.h"
#include "bindings.h"
#include "next_norm.h"

namespace emulation {

using namespace resshift;

// The arguments of window_attention, and its options.
struct Attention {
  Array qkv, table;
  int heads, window, shift;
  bool swin;

  WindowAttention call() const {
    return bindings::window_attention_call(qkv, table, heads, window, shift, swin, cuda::kMinWindow);
  }
};

inline void bind_window_attention_proj(py::module_& module) {
  py::class_<Attention>(module, "Attention")
      .def(py::init([](const Array& qkv, const Array& table, int heads, int window, int shift, bool swin) {
        return Attention{qkv, table, heads, window, shift, swin};
      }));
  // Statistics are written if there are groups. Returns how many floats of scratch memory they took.
  module.def("window_attention_proj", [](const Attention& attention, const Array& weight, const OptionalArray& bias,
                                         const OptionalArray& residual, Array& y, Next next, std::int64_t fill) {
    WindowAttentionProj call =
        bindings::window_attention_proj_call(attention.call(), attention.qkv, weight, bias, residual, y);
    if (!cuda::window_attention_proj_supported(call)) throw std::runtime_error("the kernels do not support this call");
    call.next = next.call(weight.size(0), y.size(0));
    std::vector<float> scratch(cuda::window_attention_proj_scratch(call, fill), NAN);
    call.next.entries = scratch.data();
    check(cuda::window_attention_proj(call, nullptr, fill));
    return scratch.size();
  });
}

}  // namespace emulation

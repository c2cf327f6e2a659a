// Window attention and its gradients on tensors, for any device that runs their calls.
#pragma once

#include <tuple>

#include "tensors.h"
#include "window_attention_call.h"

namespace resshift::bindings {

// Each operator as a function of tensors. A `Device` is made of the first one and runs the calls; it knows which calls
// it supports, which layout its kernels read, and how much scratch memory the gradients need.
template <class Device>
struct WindowAttentionOperators {
  static Tensor window_attention(Tensor qkv, Tensor bias_table, int64_t num_heads, int64_t window_size,
                                 int64_t shift_size, int64_t mask) {
    WindowAttention call = checked(qkv, bias_table, num_heads, window_size, shift_size, mask);
    const Device device(qkv);
    const Tensor images = Device::readable(qkv), table = Device::readable(bias_table);
    call.qkv = images.const_data_ptr();
    call.table = table.const_data_ptr();
    const std::vector<int64_t> size{qkv.size(0), qkv.size(1), qkv.size(2), qkv.size(3) / 3};
    Tensor out = torch::stable::new_empty(qkv, size);
    device.run(call, out.mutable_data_ptr());
    return out;
  }

  static std::tuple<Tensor, Tensor> window_attention_backward(Tensor dout, Tensor qkv, Tensor bias_table,
                                                              int64_t num_heads, int64_t window_size,
                                                              int64_t shift_size, int64_t mask) {
    WindowAttention call = checked(qkv, bias_table, num_heads, window_size, shift_size, mask);
    STD_TORCH_CHECK(dout.device() == qkv.device(), "dout is on another device than qkv");
    STD_TORCH_CHECK(dout.scalar_type() == qkv.scalar_type(), "dout must have qkv's dtype");
    STD_TORCH_CHECK(dout.dim() == 4 && dout.size(0) == qkv.size(0) && dout.size(1) == qkv.size(1) &&
                        dout.size(2) == qkv.size(2) && dout.size(3) == qkv.size(3) / 3,
                    "dout must be [B, H, W, C] to match qkv");
    const Device device(qkv);
    const Tensor images = Device::readable(qkv), table = Device::readable(bias_table);
    const Tensor gradients = Device::readable(dout);
    call.qkv = images.const_data_ptr();
    call.table = table.const_data_ptr();
    Tensor dqkv = torch::stable::new_empty(images, images.sizes());
    Tensor dtable = floats(qkv, {table.size(0), table.size(1)}), scratch = floats(qkv, {Device::scratch(call)});
    device.run(call, window_attention_gradients(gradients, dqkv, dtable, scratch));
    return {dqkv, dtable};
  }

 private:
  static WindowAttention checked(const Tensor& qkv, const Tensor& table, int64_t heads, int64_t window, int64_t shift,
                                 int64_t mask) {
    const WindowAttention call =
        window_attention_call(qkv, table, heads, window, shift, mask, int64_t{Device::kMinWindow});
    Device::check_call(call);
    return call;
  }
};

// The schemas are those of `torch.ops.resshift_fast`, but for the mask, which is its index.
inline void define_window_attention(torch::stable::detail::StableLibrary& library) {
  library.def(
      "window_attention(Tensor qkv, Tensor bias_table, int num_heads, int window_size, int shift_size, int mask) -> "
      "Tensor");
  library.def(
      "window_attention_backward(Tensor dout, Tensor qkv, Tensor bias_table, int num_heads, int window_size, "
      "int shift_size, int mask) -> (Tensor, Tensor)");
}

template <class Device>
void implement_window_attention(torch::stable::detail::StableLibrary& library) {
  using Operators = WindowAttentionOperators<Device>;
  library.impl("window_attention", TORCH_BOX(&Operators::window_attention));
  library.impl("window_attention_backward", TORCH_BOX(&Operators::window_attention_backward));
}

}  // namespace resshift::bindings

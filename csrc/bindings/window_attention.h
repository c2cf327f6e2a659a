// Window attention and its gradients on tensors, for any device that runs their calls.
#pragma once

#include <tuple>

#include "../common/window_attention.h"
#include "tensors.h"

namespace resshift::bindings {

// A call without its pointers. The mask is a number, as in ops.window_attention.MASKS.
template <class Device>
WindowAttention window_attention_call(const Tensor& qkv, const Tensor& table, int64_t heads, int64_t window,
                                      int64_t shift, int64_t mask) {
  STD_TORCH_CHECK(qkv.dim() == 4 && qkv.numel() > 0, "qkv must be [B, H, W, 3C] and not empty");
  const int64_t channels3 = qkv.size(3);
  STD_TORCH_CHECK(heads > 0 && heads <= channels3 && channels3 % (3 * heads) == 0, channels3,
                  " channels of qkv are not three times a multiple of ", heads, " heads");
  STD_TORCH_CHECK(channels3 < (int64_t{1} << 31), "qkv has 2^31 channels or more");
  STD_TORCH_CHECK(window >= Device::kMinWindow && window <= 16, "the window must be ", Device::kMinWindow,
                  " to 16 pixels wide, got ", window);
  STD_TORCH_CHECK(shift >= 0 && shift < window, "the shift must be 0 to ", window - 1, ", got ", shift);
  STD_TORCH_CHECK(mask == 0 || mask == 1, "mask must be 0 or 1");
  STD_TORCH_CHECK(qkv.size(1) % window == 0 && qkv.size(2) % window == 0, "the image is not a multiple of the window");
  const int64_t head_dim = channels3 / (3 * heads), entries = (2 * window - 1) * (2 * window - 1);
  STD_TORCH_CHECK(table.device() == qkv.device(), "bias_table is on another device than qkv");
  STD_TORCH_CHECK(table.dim() == 2 && table.size(0) == entries && table.size(1) == heads,
                  "bias_table must be [(2 * window - 1)^2, heads]");
  const WindowAttention call{nullptr,
                             nullptr,
                             dtype_of(qkv, "qkv"),
                             dtype_of(table, "bias_table"),
                             qkv.size(0),
                             qkv.size(1),
                             qkv.size(2),
                             static_cast<std::int32_t>(heads),
                             static_cast<std::int32_t>(head_dim),
                             static_cast<std::int32_t>(window),
                             static_cast<std::int32_t>(shift),
                             static_cast<WindowMask>(mask)};
  STD_TORCH_CHECK(call.table_dtype == Dtype::kFloat32 || call.table_dtype == call.dtype,
                  "bias_table must be float32 or have qkv's dtype");
  Device::check(call);
  return call;
}

// Each operator as a function of tensors. A `Device` is made of the first one and takes the calls; it says which it
// refuses, how it wants to read tensors, and how much scratch memory the gradients need.
template <class Device>
struct WindowAttentionOperators {
  static Tensor window_attention(Tensor qkv, Tensor bias_table, int64_t num_heads, int64_t window_size,
                                 int64_t shift_size, int64_t mask) {
    WindowAttention call = window_attention_call<Device>(qkv, bias_table, num_heads, window_size, shift_size, mask);
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
    WindowAttention call = window_attention_call<Device>(qkv, bias_table, num_heads, window_size, shift_size, mask);
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
    auto floats = [&](const std::vector<int64_t>& size) {
      return torch::stable::new_empty(qkv, size, ScalarType::Float);
    };
    Tensor dqkv = torch::stable::new_empty(images, images.sizes());
    Tensor dtable = floats({table.size(0), table.size(1)}), scratch = floats({Device::scratch(call)});
    device.run(call, WindowAttentionGradients{gradients.const_data_ptr(), dqkv.mutable_data_ptr(),
                                              static_cast<float*>(dtable.mutable_data_ptr()),
                                              static_cast<float*>(scratch.mutable_data_ptr())});
    return {dqkv, dtable};
  }
};

// The schemas are those of `torch.ops.resshift_fast`, but for the mask, which is a number.
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

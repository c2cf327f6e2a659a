// The arguments of window_attention and its gradients, from tensors.
#pragma once

#include "../common/window_attention.h"
#include "arguments.h"

namespace resshift::bindings {

// Windows are `min_window` to 16 pixels wide; the mask is an index of ops.window_attention.MASKS.
template <class Array>
WindowAttention window_attention_call(const Array& qkv, const Array& table, std::int64_t heads, std::int64_t window,
                                      std::int64_t shift, std::int64_t mask, std::int64_t min_window) {
  require(qkv.dim() == 4 && qkv.numel() > 0, "qkv must be [B, H, W, 3C] and not empty");
  const std::int64_t channels3 = qkv.size(3);
  require(heads > 0 && heads <= channels3 && channels3 % (3 * heads) == 0, channels3,
          " channels of qkv are not three times a multiple of ", heads, " heads");
  require(channels3 < (std::int64_t{1} << 31), "qkv has 2^31 channels or more");
  require(window >= min_window && window <= 16, "the window must be ", min_window, " to 16 pixels wide, got ", window);
  require(shift >= 0 && shift < window, "the shift must be 0 to ", window - 1, ", got ", shift);
  require(mask == 0 || mask == 1, "mask must be 0 or 1");
  require(qkv.size(1) % window == 0 && qkv.size(2) % window == 0, "the image is not a multiple of the window");
  require(Traits<Array>::same_device(table, qkv), "bias_table is on another device than qkv");
  require(table.dim() == 2 && table.size(0) == (2 * window - 1) * (2 * window - 1) && table.size(1) == heads,
          "bias_table must be [(2 * window - 1)^2, heads]");
  const Dtype dtype = dtype_of(qkv, "qkv"), table_dtype = dtype_of(table, "bias_table");
  require(table_dtype == Dtype::kFloat32 || table_dtype == dtype, "bias_table must be float32 or have qkv's dtype");
  return {read<void>(qkv),
          read<void>(table),
          dtype,
          table_dtype,
          qkv.size(0),
          qkv.size(1),
          qkv.size(2),
          static_cast<std::int32_t>(heads),
          static_cast<std::int32_t>(channels3 / (3 * heads)),
          static_cast<std::int32_t>(window),
          static_cast<std::int32_t>(shift),
          static_cast<WindowMask>(mask)};
}

template <class Array>
WindowAttentionGradients window_attention_gradients(const Array& dout, Array& dqkv, Array& dtable, Array& scratch) {
  return {read<void>(dout), write<void>(dqkv), write<float>(dtable), write<float>(scratch)};
}

}  // namespace resshift::bindings

// The arguments of window_attention_proj, from tensors.
#pragma once

#include "../common/window_attention_proj.h"
#include "result_call.h"
#include "window_attention_call.h"

namespace resshift::bindings {

// Without the statistics of the result y [B, H, W, O]; the weight has qkv's dtype.
template <class Array>
WindowAttentionProj window_attention_proj_call(const WindowAttention& attention, const Array& qkv, const Array& weight,
                                               const std::optional<Array>& bias, const std::optional<Array>& residual,
                                               Array& y) {
  check_device(weight, qkv, "weight");
  require(weight.dim() == 2 && weight.size(0) > 0 && weight.size(1) * 3 == qkv.size(3),
          "weight must be [O, C] to match qkv");
  require(dtype_of(weight, "weight") == attention.dtype, "weight must have qkv's dtype");
  return {attention, read<void>(weight), result_call(y, attention.dtype, weight.size(0), bias, residual), {}};
}

}  // namespace resshift::bindings

// The arguments of window_attention_proj; ops/window_attention_proj.py has the formula.
#pragma once

#include "result.h"
#include "window_attention.h"

namespace resshift {

struct WindowAttentionProj {
  WindowAttention attention;
  const void* weight;  // [result.channels, heads · head_dim], of qkv's dtype, 16-byte aligned
  Result result;       // images [B, height, width, result.channels]
  NextNorm next;
};

}  // namespace resshift

// The arguments of vector_quantize; ops/vector_quantize.py has the formula.
#pragma once

#include "view.h"

namespace resshift {

struct VectorQuantize {
  View z;                // [B, C, pixels]
  const void* codebook;  // [N, C]
  Dtype codebook_dtype;
  void* quantized;                                // [B, C, pixels], of z's dtype
  std::int64_t* indices;                          // [B, pixels]
  std::int64_t batch, channels, pixels, entries;  // fewer than 2³¹ pixels and entries
};

}  // namespace resshift

// Launcher of the kernels of vector_quantize; it returns the cudaError_t of the launch.
#pragma once

#include "../common/view.h"

namespace resshift::cuda {

struct VectorQuantize {
  View z;                  // [B, C, pixels]
  const void* codebook;    // [N, C]
  Dtype codebook_dtype;
  void* quantized;         // [B, C, pixels], of z's dtype
  std::int64_t* indices;   // [B, pixels]
  std::int64_t batch, channels, pixels, entries;  // fewer than 2³¹ pixels and entries
};

int vector_quantize(const VectorQuantize& call, void* stream);

}  // namespace resshift::cuda

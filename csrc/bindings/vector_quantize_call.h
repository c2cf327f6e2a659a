// The arguments of vector_quantize, from tensors.
#pragma once

#include "../common/vector_quantize.h"
#include "arguments.h"

namespace resshift::bindings {

template <class Array>
VectorQuantize vector_quantize_call(const Array& z, const Array& codebook, Array& quantized, Array& indices) {
  return {view_of(z, "z"),
          read<void>(codebook),
          dtype_of(codebook, "the codebook"),
          write<void>(quantized),
          write<std::int64_t>(indices),
          z.size(0),
          z.size(1),
          z.size(2) * z.size(3),
          codebook.size(0)};
}

}  // namespace resshift::bindings

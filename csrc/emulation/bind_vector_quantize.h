#pragma once

#include "../bindings/vector_quantize_call.h"
#include "../cuda/vector_quantize.h"
#include "bindings.h"

namespace emulation {

using namespace resshift;

inline void bind_vector_quantize(py::module_& module) {
  module.def("vector_quantize", [](const Array& z, const Array& codebook, Array& quantized, Array& indices) {
    check(cuda::vector_quantize(bindings::vector_quantize_call(z, codebook, quantized, indices), nullptr));
  });
}

}  // namespace emulation

#include "../cuda/vector_quantize.h"
#include "bindings.h"

namespace emulation {

using namespace resshift;

void bind_vector_quantize(py::module_& module) {
  module.def("vector_quantize", [](const Array& z, const Array& codebook, Array& quantized, Array& indices) {
    const VectorQuantize call{view_of(z),
                              codebook.data(),
                              dtype_of(codebook),
                              quantized.mutable_data(),
                              static_cast<std::int64_t*>(indices.mutable_data()),
                              z.shape(0),
                              z.shape(1),
                              z.shape(2) * z.shape(3),
                              codebook.shape(0)};
    check(cuda::vector_quantize(call, nullptr));
  });
}

}  // namespace emulation

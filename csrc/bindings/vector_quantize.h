// Vector quantization of tensors, for any device that runs its calls.
#pragma once

#include <tuple>

#include "tensors.h"
#include "vector_quantize_call.h"

namespace resshift::bindings {

// A `Device` is made of the first tensor and runs calls.
template <class Device>
std::tuple<Tensor, Tensor> vector_quantize(Tensor z, Tensor codebook) {
  STD_TORCH_CHECK(z.dim() == 4 && z.numel() > 0, "z must be [B, C, H, W] and not empty");
  STD_TORCH_CHECK(codebook.dim() == 2 && codebook.size(0) > 0 && codebook.size(1) == z.size(1),
                  "the codebook must be [N, C] with z's channels and not empty");
  STD_TORCH_CHECK(z.size(2) * z.size(3) < (int64_t{1} << 31) && codebook.size(0) < (int64_t{1} << 31),
                  "an image has 2^31 pixels or the codebook 2^31 entries or more");
  const Device device(z);
  const Tensor vectors = by_pixel(z), rows = flat(codebook, codebook.scalar_type(), 0, z, "the codebook");
  Tensor quantized = torch::stable::new_empty(z, std::vector<int64_t>{z.size(0), z.size(1), z.size(2), z.size(3)});
  Tensor indices = torch::stable::new_empty(z, std::vector<int64_t>{z.size(0), z.size(2), z.size(3)}, ScalarType::Long);
  device.run(vector_quantize_call(vectors, rows, quantized, indices));
  return {quantized, indices};
}

inline void define_vector_quantize(torch::stable::detail::StableLibrary& library) {
  library.def("vector_quantize(Tensor z, Tensor codebook) -> (Tensor, Tensor)");
}

}  // namespace resshift::bindings

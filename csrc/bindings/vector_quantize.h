// Vector quantization of tensors, for any device that runs its calls.
#pragma once

#include <tuple>

#include "tensors.h"

namespace resshift::bindings {

// A `Device` is made of the first tensor and takes calls of its type `Call`.
template <class Device>
std::tuple<Tensor, Tensor> vector_quantize(Tensor z, Tensor codebook) {
  STD_TORCH_CHECK(z.dim() == 4 && z.numel() > 0, "z must be [B, C, H, W] and not empty");
  STD_TORCH_CHECK(codebook.dim() == 2 && codebook.size(0) > 0 && codebook.size(1) == z.size(1),
                  "the codebook must be [N, C] with z's channels and not empty");
  const int64_t batch = z.size(0), channels = z.size(1), pixels = z.size(2) * z.size(3), entries = codebook.size(0);
  STD_TORCH_CHECK(pixels < (int64_t{1} << 31) && entries < (int64_t{1} << 31),
                  "an image has 2^31 pixels or the codebook 2^31 entries or more");
  const Device device(z);
  const Tensor vectors = by_pixel(z), rows = flat(codebook, codebook.scalar_type(), 0, z, "the codebook");
  Tensor quantized = torch::stable::new_empty(z, std::vector<int64_t>{batch, channels, z.size(2), z.size(3)});
  Tensor indices = torch::stable::new_empty(z, std::vector<int64_t>{batch, z.size(2), z.size(3)}, ScalarType::Long);
  device.run(typename Device::Call{view_of(vectors, "z"), rows.const_data_ptr(), dtype_of(rows, "the codebook"),
                                   quantized.mutable_data_ptr(), static_cast<int64_t*>(indices.mutable_data_ptr()),
                                   batch, channels, pixels, entries});
  return {quantized, indices};
}

inline void define_vector_quantize(torch::stable::detail::StableLibrary& library) {
  library.def("vector_quantize(Tensor z, Tensor codebook) -> (Tensor, Tensor)");
}

}  // namespace resshift::bindings

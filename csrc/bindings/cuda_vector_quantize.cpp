// Vector quantization of CUDA tensors.
#include <tuple>

#include "../cuda/vector_quantize.h"

#include "cuda.h"

namespace resshift::bindings {
namespace {

std::tuple<Tensor, Tensor> vector_quantize(Tensor z, Tensor codebook) {
  STD_TORCH_CHECK(z.dim() == 4 && z.numel() > 0, "z must be [B, C, H, W] and not empty");
  STD_TORCH_CHECK(codebook.dim() == 2 && codebook.size(0) > 0 && codebook.size(1) == z.size(1),
                  "the codebook must be [N, C] with z's channels and not empty");
  const int64_t batch = z.size(0), channels = z.size(1), pixels = z.size(2) * z.size(3), entries = codebook.size(0);
  STD_TORCH_CHECK(pixels < (int64_t{1} << 31) && entries < (int64_t{1} << 31),
                  "an image has 2^31 pixels or the codebook 2^31 entries or more");
  const Launcher launcher(z);
  const Tensor vectors = by_pixel(z), rows = flat(codebook, codebook.scalar_type(), 0, z, "the codebook");
  Tensor quantized = torch::stable::new_empty(z, std::vector<int64_t>{batch, channels, z.size(2), z.size(3)});
  Tensor indices =
      torch::stable::new_empty(z, std::vector<int64_t>{batch, z.size(2), z.size(3)}, ScalarType::Long);
  const cuda::VectorQuantize call{view_of(vectors, "z"),
                                  rows.const_data_ptr(),
                                  dtype_of(rows, "the codebook"),
                                  quantized.mutable_data_ptr(),
                                  static_cast<int64_t*>(indices.mutable_data_ptr()),
                                  batch,
                                  channels,
                                  pixels,
                                  entries};
  Launcher::check(cuda::vector_quantize(call, launcher.stream()));
  return {quantized, indices};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cuda, library) {
  library.def("vector_quantize(Tensor z, Tensor codebook) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cuda, RSF_CUDA_KEY, library) {
  library.impl("vector_quantize", TORCH_BOX(&vector_quantize));
}

}  // namespace resshift::bindings

// The dense block of ESRGAN on CPU tensors.
#include "../cpu/dense_block.h"

#include "../cpu/workspace.h"
#include "cpu.h"

namespace resshift::bindings {
namespace {

using cpu::DenseBlock;

Tensor dense_block(Tensor x, Tensor w1, Tensor w2, Tensor w3, Tensor w4, Tensor w5, Tensor b1, Tensor b2, Tensor b3,
                   Tensor b4, Tensor b5, double slope, double scale, int64_t tile) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 4 && x.numel() > 0, "x must be [B, C, H, W] on the CPU and not empty");
  STD_TORCH_CHECK(tile == 4 || tile == 6 || tile == 8, "tile must be 4, 6 or 8");
  STD_TORCH_CHECK(w1.dim() == 4, "w1 must be [G, C, 3, 3]");
  DenseBlock call{};
  call.batch = x.size(0);
  call.channels = x.size(1);
  call.height = x.size(2);
  call.width = x.size(3);
  call.growth = w1.size(0);
  call.dtype = dtype_of(x, "x");
  call.slope = static_cast<float>(slope);
  call.scale = static_cast<float>(scale);
  STD_TORCH_CHECK(call.growth > 0 && call.growth % 16 == 0 && call.channels % call.growth == 0,
                  "the growth must be a multiple of 16, and x's channels one of it");
  const Tensor weights[] = {w1, w2, w3, w4, w5};
  std::vector<Tensor> biases{b1, b2, b3, b4, b5};
  for (int i = 0; i < DenseBlock::kConvs; ++i) {
    const Tensor& weight = weights[i];
    const int64_t channels = call.channels + i * call.growth;
    const int64_t out = i + 1 < DenseBlock::kConvs ? call.growth : call.channels;
    STD_TORCH_CHECK(weight.is_cpu() && weight.dim() == 4 && weight.size(0) == out && weight.size(1) == channels &&
                        weight.size(2) == 3 && weight.size(3) == 3,
                    "weight must be [O, C, 3, 3] of a dense block, on the CPU");
    STD_TORCH_CHECK(weight.stride(0) == 1 && weight.stride(1) == out && weight.stride(3) == channels * out &&
                        weight.stride(2) == 3 * channels * out,
                    "weight must lie in memory with output channels last and taps first");
    call.weights[i] = weight.const_data_ptr();
    call.weight_dtypes[i] = dtype_of(weight, "weight");
    biases[i] = flat(biases[i], ScalarType::Float, out, x, "bias");
    call.biases[i] = static_cast<const float*>(biases[i].const_data_ptr());
  }
  const Tensor image = channels_last(x);
  Tensor y = empty_channels_last(x, call.channels, call.height, call.width);
  cpu::advise_huge_pages(y.mutable_data_ptr(), static_cast<std::size_t>(y.numel()) * y.element_size());
  call.x = image.const_data_ptr();
  call.y = y.mutable_data_ptr();
  cpu::dense_block(call, static_cast<int>(tile));
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cpu, library) {
  library.def(
      "dense_block(Tensor x, Tensor w1, Tensor w2, Tensor w3, Tensor w4, Tensor w5, Tensor b1, Tensor b2, Tensor b3, "
      "Tensor b4, Tensor b5, float slope, float scale, int tile) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cpu, CPU, library) { library.impl("dense_block", TORCH_BOX(&dense_block)); }

}  // namespace resshift::bindings

// Window attention with its projection on CUDA tensors.
#include "../cuda/window_attention_proj.h"

#include "../cuda/window_attention.h"
#include "cuda.h"
#include "window_attention_proj_call.h"

namespace resshift::bindings {
namespace {

// The operator's arguments, but for those of the statistics.
struct Given {
  Tensor qkv, bias_table, weight;
  OptionalTensor bias, residual;
  int64_t num_heads, window_size, shift_size, mask;
};

Tensor run(const Given& given, NextStatistics& next) {
  const OnCuda device(given.qkv);
  WindowAttention attention = window_attention_call(given.qkv, given.bias_table, given.num_heads, given.window_size,
                                                    given.shift_size, given.mask, cuda::kMinWindow);
  const Tensor images = readable(given.qkv), table = readable(given.bias_table);
  attention.qkv = images.const_data_ptr();
  attention.table = table.const_data_ptr();
  const Tensor weight = readable_factors(given.weight, given.qkv, "weight");
  const OptionalTensor bias = readable(given.bias, "bias", MemoryFormat::Contiguous);
  const OptionalTensor residual = readable(given.residual, "residual", MemoryFormat::Contiguous);
  STD_TORCH_CHECK(weight.dim() == 2, "weight must be [O, C]");
  const std::vector<int64_t> size{images.size(0), images.size(1), images.size(2), weight.size(0)};
  Tensor y = torch::stable::new_empty(images, size);
  WindowAttentionProj call = window_attention_proj_call(attention, images, weight, bias, residual, y);
  STD_TORCH_CHECK(cuda::window_attention_proj_supported(call), "heads must be ", cuda::kProjHeadDim,
                  " wide, and the blocks no more than one launch can have");
  call.next = next.call(weight.size(0), images.size(0));
  next.set_scratch(call.next, images, cuda::window_attention_proj_scratch(call));
  OnCuda::check(cuda::window_attention_proj(call, device.stream()));
  return y;
}

Tensor window_attention_proj(Tensor qkv, Tensor bias_table, Tensor weight, OptionalTensor bias, OptionalTensor residual,
                             int64_t num_heads, int64_t window_size, int64_t shift_size, int64_t mask) {
  NextStatistics none;
  return run({qkv, bias_table, weight, bias, residual, num_heads, window_size, shift_size, mask}, none);
}

std::tuple<Tensor, Tensor> window_attention_proj_statistics(Tensor qkv, Tensor bias_table, Tensor weight,
                                                            OptionalTensor bias, OptionalTensor residual,
                                                            int64_t num_heads, int64_t window_size, int64_t shift_size,
                                                            int64_t mask, int64_t next_groups, double next_eps,
                                                            Tensor counters) {
  STD_TORCH_CHECK(qkv.dim() == 4 && qkv.numel() > 0, "qkv must be [B, H, W, 3C] and not empty");
  NextStatistics next(next_groups, next_eps, counters, qkv);
  const Tensor y = run({qkv, bias_table, weight, bias, residual, num_heads, window_size, shift_size, mask}, next);
  return {y, next.statistics()};
}

}  // namespace

// The schemas are those of `torch.ops.resshift_fast`, but for the mask, which is its index, and the counters.
STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cuda, library) {
  library.def(
      "window_attention_proj(Tensor qkv, Tensor bias_table, Tensor weight, Tensor? bias, Tensor? residual, "
      "int num_heads, int window_size, int shift_size, int mask) -> Tensor");
  library.def(
      "window_attention_proj_statistics(Tensor qkv, Tensor bias_table, Tensor weight, Tensor? bias, Tensor? residual, "
      "int num_heads, int window_size, int shift_size, int mask, int next_groups, float next_eps, "
      "Tensor(a!) counters) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cuda, RSF_CUDA_KEY, library) {
  library.impl("window_attention_proj", TORCH_BOX(&window_attention_proj));
  library.impl("window_attention_proj_statistics", TORCH_BOX(&window_attention_proj_statistics));
}

}  // namespace resshift::bindings

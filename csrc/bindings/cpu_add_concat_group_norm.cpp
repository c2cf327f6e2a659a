// Sum or concatenation of two images and its group_norm, on CPU tensors.
#include "../cpu/add_concat_group_norm.h"

#include "cpu.h"
#include "group_norm.h"

namespace resshift::bindings {
namespace {

// The mode is an index of ops.add_concat_group_norm.MODES.
std::tuple<Tensor, Tensor> add_concat_group_norm(Tensor x, Tensor other, int64_t num_groups, Tensor weight, Tensor bias,
                                                 double eps, int64_t mode, OptionalTensor scale, OptionalTensor shift,
                                                 int64_t activation) {
  STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0, "x must be [B, C, H, W] and not empty");
  const OnCpu device(x);
  STD_TORCH_CHECK(mode == 0 || mode == 1, "mode must be 0 or 1");
  STD_TORCH_CHECK(other.is_cpu() && other.scalar_type() == x.scalar_type(), "other must be on the CPU, in x's dtype");
  STD_TORCH_CHECK(other.dim() == 4 && other.numel() > 0 && other.size(0) == x.size(0) && other.size(2) == x.size(2) &&
                      other.size(3) == x.size(3) && (mode == 1 || other.size(1) == x.size(1)),
                  "other must be shaped like x, but for the channels of a concatenation");
  const int64_t channels = x.size(1) + (mode == 1 ? other.size(1) : 0);
  cpu::AddConcatGroupNorm call{};
  call.norm.images = images_of(x, channels, num_groups, true);
  call.norm.affine = affine_of<Tensor>({weight, bias, scale, shift, activation}, x, channels);
  const Tensor first = dense(x, true), second = dense(other, true);
  Tensor merged = empty_channels_last(x, channels, x.size(2), x.size(3));
  Tensor y = empty_channels_last(x, channels, x.size(2), x.size(3));
  Tensor table = floats(x, {x.size(0), 3, channels});
  Tensor scratch = floats(x, {cpu::group_norm_affine_scratch(call.norm.images)});
  call.norm.x = call.merged = merged.mutable_data_ptr();
  call.norm.eps = static_cast<float>(eps);
  call.norm.y = y.mutable_data_ptr();
  call.norm.scratch = data(scratch);
  call.x = first.const_data_ptr();
  call.other = second.const_data_ptr();
  call.channels = x.size(1);
  call.concat = mode == 1;
  call.table = data(table);
  cpu::add_concat_group_norm(call);
  return {merged, y};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cpu, library) {
  library.def(
      "add_concat_group_norm(Tensor x, Tensor other, int num_groups, Tensor weight, Tensor bias, float eps, int mode, "
      "Tensor? scale, Tensor? shift, int activation) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cpu, CPU, library) {
  library.impl("add_concat_group_norm", TORCH_BOX(&add_concat_group_norm));
}

}  // namespace resshift::bindings

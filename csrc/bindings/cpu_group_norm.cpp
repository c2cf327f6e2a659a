// Group normalization and its gradient on CPU tensors, and the affine map that other operators apply themselves.
#include "../cpu/group_norm.h"

#include "cpu.h"
#include "group_norm.h"

namespace resshift::bindings {
namespace {

struct Cpu : OnCpu {
  using OnCpu::OnCpu;

  static int64_t scratch(const GroupNorm& call) { return cpu::group_norm_scratch(call.images); }
  static int64_t scratch(const GroupNormBackward& call) { return cpu::group_norm_backward_scratch(call.images); }
  void run(const GroupNorm& call) const { cpu::group_norm(call); }
  void run(const GroupNormBackward& call) const { cpu::group_norm_backward(call); }
};

// (mean, multiplier, offset) of every channel, float32 [B, 3, C]: group_norm(x) is (x − mean) · multiplier + offset.
Tensor group_norm_affine(Tensor x, int64_t num_groups, Tensor weight, Tensor bias, double eps, OptionalTensor scale,
                         OptionalTensor shift) {
  STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0, "x must be [B, C, H, W] and not empty");
  const OnCpu device(x);
  const bool channels_last = is_dense(x, true) || !is_dense(x, false);
  const GroupedImages images = images_of(x, x.size(1), num_groups, channels_last);
  const Affine affine = affine_of<Tensor>({weight, bias, scale, shift, 0}, x, x.size(1));
  const Tensor values = dense(x, channels_last);
  Tensor table = floats(x, {x.size(0), 3, x.size(1)}), scratch = floats(x, {cpu::group_norm_affine_scratch(images)});
  GroupNorm call{};
  call.images = images;
  call.x = values.const_data_ptr();
  call.affine = affine;
  call.eps = static_cast<float>(eps);
  call.scratch = data(scratch);
  cpu::group_norm_affine(call, data(table));
  return table;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cpu, library) {
  define_group_norm(library);
  library.def(
      "group_norm_affine(Tensor x, int num_groups, Tensor weight, Tensor bias, float eps, Tensor? scale, "
      "Tensor? shift) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cpu, CPU, library) {
  implement_group_norm<Cpu>(library);
  library.impl("group_norm_affine", TORCH_BOX(&group_norm_affine));
}

}  // namespace resshift::bindings

#include <vector>

#include "../cuda/group_norm.h"
#include "bindings.h"

namespace emulation {

using namespace resshift;

namespace {

// Images [B, C, H, W] whose strides are those of channels-last, or else contiguous.
GroupedImages images_of(const Array& x, std::int64_t num_groups) {
  const View view = view_of(x);
  const bool channels_last = view.channel == 1 && x.shape(1) > 1;
  return {view.dtype, channels_last, x.shape(0), x.shape(1), x.shape(2) * x.shape(3), num_groups};
}

// An array [C] or [B, C] in any layout.
View channels_of(const OptionalArray& array) {
  if (!array) return {};
  const auto axis = array->ndim() - 1;
  return {array->data(), dtype_of(*array), axis ? array->strides(0) / array->itemsize() : 0,
          array->strides(axis) / array->itemsize(), 0};
}

float* floats_of(Array& array) { return static_cast<float*>(array.mutable_data()); }

}  // namespace

void bind_group_norm(py::module_& module) {
  // Both return how many floats of scratch memory they took.
  module.def("group_norm", [](const Array& x, std::int64_t num_groups, const Array& weight, const Array& bias,
                              float eps, const OptionalArray& scale, const OptionalArray& shift, bool silu, Array& y,
                              Array& mean, Array& rstd, std::int64_t parts) {
    cuda::GroupNorm call{images_of(x, num_groups),
                         x.data(),
                         {channels_of(weight), channels_of(bias), channels_of(scale), channels_of(shift), silu},
                         eps,
                         y.mutable_data(),
                         floats_of(mean),
                         floats_of(rstd),
                         nullptr,
                         parts};
    std::vector<float> scratch(cuda::group_norm_scratch(call), NAN);
    call.scratch = scratch.data();
    check(cuda::group_norm(call, nullptr));
    return scratch.size();
  });
  module.def("group_norm_backward", [](const Array& dy, const Array& x, const Array& mean, const Array& rstd,
                                       std::int64_t num_groups, const Array& weight, const Array& bias,
                                       const OptionalArray& scale, const OptionalArray& shift, bool silu, Array& dx,
                                       Array& dweight, Array& dbias, Array& dscale, Array& dshift, std::int64_t parts) {
    cuda::GroupNormBackward call{images_of(x, num_groups),
                                 dy.data(),
                                 x.data(),
                                 static_cast<const float*>(mean.data()),
                                 static_cast<const float*>(rstd.data()),
                                 {channels_of(weight), channels_of(bias), channels_of(scale), channels_of(shift), silu},
                                 dx.mutable_data(),
                                 floats_of(dweight),
                                 floats_of(dbias),
                                 floats_of(dscale),
                                 floats_of(dshift),
                                 nullptr,
                                 parts};
    std::vector<float> scratch(cuda::group_norm_backward_scratch(call), NAN);
    call.scratch = scratch.data();
    check(cuda::group_norm_backward(call, nullptr));
    return scratch.size();
  });
}

}  // namespace emulation

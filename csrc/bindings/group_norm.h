// group_norm and its gradient on tensors, for any device that runs their calls.
#pragma once

#include <tuple>

#include "group_norm_call.h"
#include "tensors.h"

namespace resshift::bindings {

inline Tensor dense(const Tensor& x, bool channels_last) {
  if (is_dense(x, channels_last)) return x;
  return torch::stable::contiguous(x, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// A result with the strides of `torch.empty_like(x)`, and the dense images that a kernel writes: the same memory where
// these strides are dense.
class Result {
 public:
  explicit Result(const Tensor& x) : tensor_(torch::stable::empty_like(x)), images_(tensor_) {
    channels_last_ = !is_dense(tensor_, false);
    if (!channels_last_ || is_dense(tensor_, true)) return;
    channels_last_ = false;
    images_ = torch::stable::new_empty(x, std::vector<int64_t>{x.size(0), x.size(1), x.size(2), x.size(3)});
  }

  bool channels_last() const { return channels_last_; }
  Tensor& images() { return images_; }

  Tensor finished() {
    if (images_.const_data_ptr() != tensor_.const_data_ptr()) torch::stable::copy_(tensor_, images_);
    return tensor_;
  }

 private:
  Tensor tensor_, images_;
  bool channels_last_;
};

inline float* data(Tensor& x) { return write<float>(x); }

// Each operator as a function of tensors. A `Device` is made of the first one, knows how many floats of scratch memory
// a call needs, and runs the calls.
template <class Device>
struct GroupNormOperators {
  static std::tuple<Tensor, Tensor, Tensor> group_norm(Tensor x, int64_t num_groups, Tensor weight, Tensor bias,
                                                       double eps, OptionalTensor scale, OptionalTensor shift,
                                                       int64_t activation) {
    STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0, "x must be [B, C, H, W] and not empty");
    const Device device(x);
    Result y(x);
    const GroupedImages images = images_of(x, x.size(1), num_groups, y.channels_last());
    const Affine affine = affine_of<Tensor>({weight, bias, scale, shift, activation}, x, x.size(1));
    const Tensor values = dense(x, y.channels_last());
    Tensor mean = floats(x, {x.size(0), num_groups}), rstd = floats(x, {x.size(0), num_groups});
    GroupNorm call = group_norm_call(images, values, affine, eps, y.images(), mean, rstd);
    Tensor scratch = floats(x, {Device::scratch(call)});
    call.scratch = data(scratch);
    device.run(call);
    return {y.finished(), mean, rstd};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> group_norm_backward(
      Tensor dy, Tensor x, Tensor mean, Tensor rstd, int64_t num_groups, Tensor weight, Tensor bias,
      OptionalTensor scale, OptionalTensor shift, int64_t activation) {
    STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0, "x must be [B, C, H, W] and not empty");
    const Device device(x);
    check_like(dy, x, "dy");
    STD_TORCH_CHECK(dy.scalar_type() == x.scalar_type(), "dy must have x's dtype");
    const int64_t batch = x.size(0), channels = x.size(1);
    Result dx(x);
    const GroupedImages images = images_of(x, channels, num_groups, dx.channels_last());
    const Affine affine = affine_of<Tensor>({weight, bias, scale, shift, activation}, x, channels);
    const Tensor gradients = dense(dy, dx.channels_last()), values = dense(x, dx.channels_last());
    const Tensor means = flat(mean, ScalarType::Float, batch * num_groups, x, "mean");
    const Tensor deviations = flat(rstd, ScalarType::Float, batch * num_groups, x, "rstd");
    GroupNormGradients<Tensor> results{dx.images(), floats(x, {channels}), floats(x, {channels}),
                                       floats(x, {batch, channels}), floats(x, {batch, channels})};
    GroupNormBackward call = group_norm_backward_call(images, gradients, values, means, deviations, affine, results);
    Tensor scratch = floats(x, {Device::scratch(call)});
    call.scratch = data(scratch);
    device.run(call);
    return {dx.finished(), results.dweight, results.dbias, results.dscale, results.dshift};
  }
};

// The schemas are those of `torch.ops.resshift_fast`, but for the activation, which is its index.
inline void define_group_norm(torch::stable::detail::StableLibrary& library) {
  library.def(
      "group_norm(Tensor x, int num_groups, Tensor weight, Tensor bias, float eps, Tensor? scale, Tensor? shift, "
      "int activation) -> (Tensor, Tensor, Tensor)");
  library.def(
      "group_norm_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, int num_groups, Tensor weight, Tensor bias, "
      "Tensor? scale, Tensor? shift, int activation) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

template <class Device>
void implement_group_norm(torch::stable::detail::StableLibrary& library) {
  library.impl("group_norm", TORCH_BOX(&GroupNormOperators<Device>::group_norm));
  library.impl("group_norm_backward", TORCH_BOX(&GroupNormOperators<Device>::group_norm_backward));
}

}  // namespace resshift::bindings

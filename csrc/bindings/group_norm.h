// group_norm and its gradient on tensors, for any device that runs their calls.
#pragma once

#include <tuple>

#include "../common/group_norm.h"
#include "tensors.h"

namespace resshift::bindings {

// Whether images [B, C, H, W] follow one another densely, channels first or last.
inline bool is_dense(const Tensor& x, bool channels_last) {
  const int order[2][4] = {{3, 2, 1, 0}, {1, 3, 2, 0}};
  int64_t stride = 1;
  for (const int dimension : order[channels_last]) {
    if (x.size(dimension) != 1 && x.stride(dimension) != stride) return false;
    stride *= x.size(dimension);
  }
  return true;
}

inline Tensor dense(const Tensor& x, bool channels_last) {
  if (is_dense(x, channels_last)) return x;
  return torch::stable::contiguous(x, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// Memory for a result with the strides of `torch.empty_like(x)`, and the dense images that a kernel writes: the same
// memory unless those strides are neither of both formats.
class Result {
 public:
  explicit Result(const Tensor& x) : tensor_(torch::stable::empty_like(x)), images_(tensor_) {
    channels_last_ = !is_dense(tensor_, false);
    if (!channels_last_ || is_dense(tensor_, true)) return;
    channels_last_ = false;
    images_ = torch::stable::new_empty(x, std::vector<int64_t>{x.size(0), x.size(1), x.size(2), x.size(3)});
  }

  bool channels_last() const { return channels_last_; }
  void* data() { return images_.mutable_data_ptr(); }

  Tensor finished() {
    if (images_.const_data_ptr() != tensor_.const_data_ptr()) torch::stable::copy_(tensor_, images_);
    return tensor_;
  }

 private:
  Tensor tensor_, images_;
  bool channels_last_;
};

// x's shape, with `channels` of them.
inline GroupedImages images_of(const Tensor& x, int64_t channels, int64_t num_groups, bool channels_last) {
  STD_TORCH_CHECK(num_groups > 0 && channels % num_groups == 0, channels, " channels do not divide into ", num_groups,
                  " groups");
  return {dtype_of(x, "x"), channels_last, x.size(0), channels, x.size(2) * x.size(3), num_groups};
}

// Parameters [C] or [B, C] in any layout, for images on the device of x.
inline View channels_of(const OptionalTensor& parameter, const Tensor& x, int64_t channels, bool per_image,
                        const char* name) {
  if (!parameter) return {};
  STD_TORCH_CHECK(parameter->device() == x.device(), name, " is on another device than the first argument");
  STD_TORCH_CHECK(parameter->dim() == (per_image ? 2 : 1) && parameter->size(per_image) == channels &&
                      (!per_image || parameter->size(0) == x.size(0)),
                  name, " must be ", per_image ? "[B, C]" : "[C]", " to match x");
  View view{parameter->const_data_ptr(), dtype_of(*parameter, name)};
  view.channel = parameter->stride(per_image);
  if (per_image) view.image = parameter->stride(0);
  return view;
}

// The activation is a number, as in ops.group_norm.ACTIVATIONS.
inline Affine affine_of(const Tensor& x, int64_t channels, const Tensor& weight, const Tensor& bias,
                        const OptionalTensor& scale, const OptionalTensor& shift, int64_t activation) {
  STD_TORCH_CHECK(activation == 0 || activation == 1, "activation must be 0 or 1");
  return {channels_of(weight, x, channels, false, "weight"), channels_of(bias, x, channels, false, "bias"),
          channels_of(scale, x, channels, true, "scale"), channels_of(shift, x, channels, true, "shift"),
          activation == 1};
}

inline Tensor floats(const Tensor& x, const std::vector<int64_t>& size) {
  return torch::stable::new_empty(x, size, ScalarType::Float);
}

inline float* data(Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

// Each operator as a function of tensors. A `Device` is made of the first one, names its types of calls, says how many
// floats of scratch memory a call needs, and takes the calls.
template <class Device>
struct GroupNormOperators {
  static std::tuple<Tensor, Tensor, Tensor> group_norm(Tensor x, int64_t num_groups, Tensor weight, Tensor bias,
                                                       double eps, OptionalTensor scale, OptionalTensor shift,
                                                       int64_t activation) {
    STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0, "x must be [B, C, H, W] and not empty");
    const Device device(x);
    const int64_t channels = x.size(1);
    Result y(x);
    const auto images = images_of(x, channels, num_groups, y.channels_last());
    const Tensor values = dense(x, y.channels_last());
    Tensor mean = floats(x, {x.size(0), num_groups}), rstd = floats(x, {x.size(0), num_groups});
    typename Device::Forward call{images,
                                  values.const_data_ptr(),
                                  affine_of(x, channels, weight, bias, scale, shift, activation),
                                  static_cast<float>(eps),
                                  y.data(),
                                  data(mean),
                                  data(rstd),
                                  nullptr};
    Tensor scratch = floats(x, {device.scratch(call)});
    call.scratch = data(scratch);
    device(call);
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
    const auto images = images_of(x, channels, num_groups, dx.channels_last());
    const Tensor gradients = dense(dy, dx.channels_last()), values = dense(x, dx.channels_last());
    const Tensor means = flat(mean, ScalarType::Float, batch * num_groups, x, "mean");
    const Tensor deviations = flat(rstd, ScalarType::Float, batch * num_groups, x, "rstd");
    Tensor dweight = floats(x, {channels}), dbias = floats(x, {channels});
    Tensor dscale = floats(x, {batch, channels}), dshift = floats(x, {batch, channels});
    typename Device::Backward call{images,
                                   gradients.const_data_ptr(),
                                   values.const_data_ptr(),
                                   static_cast<const float*>(means.const_data_ptr()),
                                   static_cast<const float*>(deviations.const_data_ptr()),
                                   affine_of(x, channels, weight, bias, scale, shift, activation),
                                   dx.data(),
                                   data(dweight),
                                   data(dbias),
                                   data(dscale),
                                   data(dshift),
                                   nullptr};
    Tensor scratch = floats(x, {device.scratch(call)});
    call.scratch = data(scratch);
    device(call);
    return {dx.finished(), dweight, dbias, dscale, dshift};
  }
};

// The schemas are those of `torch.ops.resshift_fast`, but for the activation, which is a number.
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

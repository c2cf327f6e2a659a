// The arguments of group_norm and its gradients, from tensors.
#pragma once

#include "../common/group_norm.h"
#include "arguments.h"

namespace resshift::bindings {

// Images of x's size, but with `channels` channels.
template <class Array>
GroupedImages images_of(const Array& x, std::int64_t channels, std::int64_t num_groups, bool channels_last) {
  require(num_groups > 0 && channels % num_groups == 0, channels, " channels do not divide into ", num_groups,
          " groups");
  return {dtype_of(x, "x"), channels_last, x.size(0), channels, x.size(2) * x.size(3), num_groups};
}

// A parameter [C], or [B, C] where per_image, in any layout, for images x.
template <class Array>
View channels_of(const Array& parameter, const Array& x, std::int64_t channels, bool per_image, const char* name) {
  check_device(parameter, x, name);
  require(parameter.dim() == (per_image ? 2 : 1) && parameter.size(per_image) == channels &&
              (!per_image || parameter.size(0) == x.size(0)),
          name, " must be ", per_image ? "[B, C]" : "[C]", " to match x");
  View view{parameter.const_data_ptr(), dtype_of(parameter, name)};
  view.channel = parameter.stride(per_image);
  if (per_image) view.image = parameter.stride(0);
  return view;
}

// What follows normalization; the activation is an index of ops.group_norm.ACTIVATIONS.
template <class Array>
struct AffineArguments {
  Array weight, bias;
  std::optional<Array> scale, shift;
  std::int64_t activation;
};

template <class Array>
Affine affine_of(const AffineArguments<Array>& given, const Array& x, std::int64_t channels) {
  require(given.activation == 0 || given.activation == 1, "activation must be 0 or 1");
  return {channels_of(given.weight, x, channels, false, "weight"), channels_of(given.bias, x, channels, false, "bias"),
          given.scale ? channels_of(*given.scale, x, channels, true, "scale") : View{},
          given.shift ? channels_of(*given.shift, x, channels, true, "shift") : View{}, given.activation == 1};
}

template <class Array>
struct GroupNormGradients {
  Array dx, dweight, dbias, dscale, dshift;
};

// Calls without scratch memory.
template <class Array>
GroupNorm group_norm_call(const GroupedImages& images, const Array& x, const Affine& affine, double eps, Array& y,
                          Array& mean, Array& rstd) {
  return {
      images, read<void>(x), affine, static_cast<float>(eps), write<void>(y), write<float>(mean), write<float>(rstd),
      nullptr};
}

template <class Array>
GroupNormBackward group_norm_backward_call(const GroupedImages& images, const Array& dy, const Array& x,
                                           const Array& mean, const Array& rstd, const Affine& affine,
                                           GroupNormGradients<Array>& gradients) {
  return {images,
          read<void>(dy),
          read<void>(x),
          read<float>(mean),
          read<float>(rstd),
          affine,
          write<void>(gradients.dx),
          write<float>(gradients.dweight),
          write<float>(gradients.dbias),
          write<float>(gradients.dscale),
          write<float>(gradients.dshift),
          nullptr};
}

}  // namespace resshift::bindings

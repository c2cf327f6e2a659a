// Torch's tensors, checked before they become pointers. Only the stable ABI of LibTorch 2.10 is used, so that one
// library works with every later torch.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <vector>

#include "arguments.h"

namespace resshift::bindings {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Refuse a tensor whose storage was made smaller than the tensor, as programs do that free weights for a while.
inline void check_memory(const Tensor& x, const char* name) {
  if (x.numel() == 0) return;
  int64_t end = 1, offset = 0, bytes = 0;
  for (int64_t i = 0; i < x.dim(); ++i) end += (x.size(i) - 1) * x.stride(i);
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(x.get(), &offset));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(x.get(), &bytes));
  STD_TORCH_CHECK((offset + end) * static_cast<int64_t>(x.element_size()) <= bytes, name, " has a storage of ", bytes,
                  " bytes, which is smaller than the tensor: it was resized; restore it first");
}

template <>
struct Traits<Tensor> {
  static Dtype dtype_of(const Tensor& x, const char* name) {
    check_memory(x, name);
    const ScalarType type = x.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16, name,
                    " must be float32, float16 or bfloat16");
    return type == ScalarType::Half       ? Dtype::kFloat16
           : type == ScalarType::BFloat16 ? Dtype::kBFloat16
                                          : Dtype::kFloat32;
  }

  static bool same_device(const Tensor& x, const Tensor& y) { return x.device() == y.device(); }
};

// Refuse a tensor that is not where `like` is or has another shape: reading it would leave its memory.
inline void check_like(const Tensor& x, const Tensor& like, const char* name) {
  check_device(x, like, name);
  STD_TORCH_CHECK(x.dim() == like.dim(), name, " has ", x.dim(), " dimensions, expected ", like.dim());
  for (int64_t i = 0; i < x.dim(); ++i) {
    STD_TORCH_CHECK(x.size(i) == like.size(i), name, " has size ", x.size(i), " in dimension ", i, ", expected ",
                    like.size(i));
  }
  check_memory(x, name);
}

// A contiguous tensor of one dtype, at least `count` elements long, on the device of `like`.
inline Tensor flat(const Tensor& x, ScalarType type, int64_t count, const Tensor& like, const char* name) {
  check_device(x, like, name);
  STD_TORCH_CHECK(x.scalar_type() == type, name, " has another dtype than expected");
  STD_TORCH_CHECK(x.numel() >= count, name, " has ", x.numel(), " elements, expected ", count);
  check_memory(x, name);
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

// An image [B, C, H, W] whose rows follow one another, copied only if they do not.
inline Tensor by_pixel(const Tensor& x) { return rows_follow(x) ? x : torch::stable::contiguous(x); }

// An uninitialized channels-last image of x's batch, on its device.
inline Tensor empty_channels_last(const Tensor& x, ScalarType dtype, int64_t channels, int64_t height, int64_t width) {
  const std::vector<int64_t> size{x.size(0), channels, height, width};
  return torch::stable::empty(size, dtype, std::nullopt, x.device(), std::nullopt, MemoryFormat::ChannelsLast);
}

inline Tensor empty_channels_last(const Tensor& x, int64_t channels, int64_t height, int64_t width) {
  return empty_channels_last(x, x.scalar_type(), channels, height, width);
}

// An uninitialized float32 tensor on x's device.
inline Tensor floats(const Tensor& x, const std::vector<int64_t>& size) {
  return torch::stable::new_empty(x, size, ScalarType::Float);
}

}  // namespace resshift::bindings

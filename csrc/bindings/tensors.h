// What torch hands over, checked before it becomes pointers. Only the stable ABI of LibTorch 2.10 is used, so that one
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

#include "../common/residual_shift.h"
#include "../common/scalar.h"

namespace resshift::bindings {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline Dtype dtype_of(ScalarType type, const char* name) {
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16, name,
                  " must be float32, float16 or bfloat16");
  return type == ScalarType::Half ? Dtype::kFloat16 : type == ScalarType::BFloat16 ? Dtype::kBFloat16 : Dtype::kFloat32;
}

inline Dtype dtype_of(const Tensor& x, const char* name) { return dtype_of(x.scalar_type(), name); }

// Refuse a tensor that is not where `like` is or has another shape: reading it would leave its memory.
inline void check_like(const Tensor& x, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(x.device() == like.device(), name, " is on another device than the first argument");
  STD_TORCH_CHECK(x.dim() == like.dim(), name, " has ", x.dim(), " dimensions, expected ", like.dim());
  for (int64_t i = 0; i < x.dim(); ++i) {
    STD_TORCH_CHECK(x.size(i) == like.size(i), name, " has size ", x.size(i), " in dimension ", i, ", expected ",
                    like.size(i));
  }
}

// A contiguous tensor of one dtype, at least `count` elements long, on the device of `like`.
inline Tensor flat(const Tensor& x, ScalarType type, int64_t count, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(x.device() == like.device(), name, " is on another device than the first argument");
  STD_TORCH_CHECK(x.scalar_type() == type, name, " has another dtype than expected");
  STD_TORCH_CHECK(x.numel() >= count, name, " has ", x.numel(), " elements, expected ", count);
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

// An image [B, C, H, W] whose rows follow one another, copied only if they do not.
inline Tensor by_pixel(const Tensor& x) {
  const int64_t height = x.size(2), width = x.size(3);
  return height > 1 && width > 1 && x.stride(2) != width * x.stride(3) ? torch::stable::contiguous(x) : x;
}

inline View view_of(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0, name, " must be [B, C, H, W] and not empty");
  return {x.const_data_ptr(), dtype_of(x, name), x.stride(0), x.stride(1), x.size(3) > 1 ? x.stride(3) : x.stride(2)};
}

}  // namespace resshift::bindings

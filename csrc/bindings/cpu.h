// What the bindings of CPU kernels share: channels-last images of tensors in any layout, and parameters.
#pragma once

#include <algorithm>

#include "tensors.h"

namespace resshift::bindings {

// What an operator's device is made of; all threads run its calls.
struct OnCpu {
  explicit OnCpu(const Tensor& x) { STD_TORCH_CHECK(x.is_cpu(), "the first argument must be on the CPU"); }
};

// x with channels last, copied only if it is not.
inline Tensor channels_last(const Tensor& x) { return torch::stable::contiguous(x, MemoryFormat::ChannelsLast); }

// An image with the strides of torch.empty_like(model), which a kernel writes with channels last.
class ImageLike {
 public:
  explicit ImageLike(const Tensor& model) : image_(torch::stable::empty_like(model)), written_(channels_last(image_)) {}

  void* data() { return written_.mutable_data_ptr(); }

  // The image, once it is written.
  Tensor finished() {
    if (written_.const_data_ptr() != image_.const_data_ptr()) torch::stable::copy_(image_, written_);
    return image_;
  }

 private:
  Tensor image_, written_;
};

// A parameter of that size on the CPU, contiguous.
inline Tensor parameter(const Tensor& x, const std::vector<int64_t>& size, const char* name) {
  STD_TORCH_CHECK(x.is_cpu(), name, " must be on the CPU");
  const auto sizes = x.sizes();
  STD_TORCH_CHECK(std::equal(sizes.begin(), sizes.end(), size.begin(), size.end()), name, " has another shape than ",
                  "expected");
  dtype_of(x, name);
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

// The table [B, 3, C] of mean, multiplier and offset that normalizes images x.
inline Tensor normalization_of(const Tensor& table, const Tensor& x) {
  return flat(table, ScalarType::Float, x.size(0) * 3 * x.size(1), x, "normalization");
}

inline const void* pointer(const OptionalTensor& x) { return x ? x->const_data_ptr() : nullptr; }

}  // namespace resshift::bindings

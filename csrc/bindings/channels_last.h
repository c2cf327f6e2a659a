// Images for kernels that read and write them with channels last, whatever the layout of what torch hands over.
#pragma once

#include "tensors.h"

namespace resshift::bindings {

// x with channels last, copied only if they are not.
inline Tensor channels_last(const Tensor& x) { return torch::stable::contiguous(x, MemoryFormat::ChannelsLast); }

// An image like `model`, laid out as torch.empty_like does, that is written with channels last.
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

}  // namespace resshift::bindings

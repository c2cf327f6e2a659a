// Launching on torch's current stream.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "../cuda/runtime.h"
#include "tensors.h"

namespace resshift::bindings {

// Makes a tensor's device the current one for as long as it lives, and knows that device's current stream.
class Launcher {
 public:
  explicit Launcher(const Tensor& x) : guard_(x.get_device_index()) {
    STD_TORCH_CHECK(x.is_cuda(), "the first argument must be on a CUDA device");
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream_));
  }

  void* stream() const { return stream_; }

  // Pass on what a launcher returned.
  static void check(int error) {
    STD_TORCH_CHECK(error == 0, "the kernel could not be started: ", cuda::error_string(error));
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

}  // namespace resshift::bindings

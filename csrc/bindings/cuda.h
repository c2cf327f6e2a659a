// Launching on torch's current stream.
//
// With RSF_EMULATED the bindings take CPU tensors and call the kernels of csrc/emulation, so that tests run all code
// between torch and the kernels.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "../cuda/runtime.h"
#include "tensors.h"

namespace resshift::bindings {

// The dispatch key that CUDA's operators are implemented for.
#if defined(RSF_EMULATED)
#define RSF_CUDA_KEY CPU
#else
#define RSF_CUDA_KEY CUDA
#endif

// Makes a tensor's device the current one for its own lifetime, and knows that device's current stream.
class OnCuda {
 public:
#if defined(RSF_EMULATED)
  explicit OnCuda(const Tensor& x) { STD_TORCH_CHECK(x.is_cpu(), "the emulation takes CPU tensors"); }
#else
  explicit OnCuda(const Tensor& x) : guard_(index_of(x)) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream_));
  }
#endif

  void* stream() const { return stream_; }

  // Pass on what a launcher returned.
  static void check(int error) {
    STD_TORCH_CHECK(error == 0, "the kernel could not be started: ", cuda::error_string(error));
  }

 private:
#if !defined(RSF_EMULATED)
  static int32_t index_of(const Tensor& x) {
    STD_TORCH_CHECK(x.is_cuda(), "the first argument must be on a CUDA device");
    return x.get_device_index();
  }

  torch::stable::accelerator::DeviceGuard guard_;
#endif
  void* stream_ = nullptr;
};

}  // namespace resshift::bindings

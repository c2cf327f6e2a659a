// Launching on torch's current stream.
//
// With RSF_EMULATED the bindings take CPU tensors and call the kernels of csrc/emulation, so that tests run all code
// between torch and the kernels.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "../cuda/runtime.h"
#include "result_call.h"
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

// A contiguous tensor whose memory can be read 16 bytes at a time, copied only if it is not one.
inline Tensor readable(const Tensor& x, MemoryFormat format = MemoryFormat::Contiguous) {
  const bool channels_last = format == MemoryFormat::ChannelsLast;
  const bool is_dense_already = channels_last ? is_dense(x, true) : x.is_contiguous();
  const Tensor dense = is_dense_already ? x : torch::stable::contiguous(x, format);
  if (reinterpret_cast<std::uintptr_t>(dense.const_data_ptr()) % 16 == 0) return dense;
  return torch::stable::clone(dense);
}

// The same of a parameter or an image that may be missing, after a check of its memory.
inline OptionalTensor readable(const OptionalTensor& x, const char* name, MemoryFormat format) {
  if (!x) return x;
  check_memory(*x, name);
  STD_TORCH_CHECK(format == MemoryFormat::Contiguous || x->dim() == 4, name, " must have 4 dimensions");
  return readable(*x, format);
}

// A matrix of factors in the dtype of the images x; with another one, every block would convert it.
inline Tensor readable_factors(const Tensor& factors, const Tensor& x, const char* name) {
  check_device(factors, x, name);
  const Dtype own = dtype_of(factors, name);
  STD_TORCH_CHECK(own == Dtype::kFloat32 || own == dtype_of(x, "x"), name,
                  " must be float32 or have the image's dtype");
  const bool same = factors.scalar_type() == x.scalar_type();
  return readable(same ? factors : torch::stable::to(factors, x.scalar_type()));
}

// The tensors of the statistics of a result's next group normalization, which are written if there are groups.
class NextStatistics {
 public:
  NextStatistics() = default;
  NextStatistics(int64_t groups, double eps, const Tensor& counters, const Tensor& images)
      : groups_(groups), eps_(eps) {
    STD_TORCH_CHECK(groups > 0, "next_groups must be positive, got ", groups);
    STD_TORCH_CHECK(counters.is_contiguous(), "counters must be contiguous");
    counters_ = flat(counters, ScalarType::Int, images.size(0), images, "counters");
    statistics_ = floats(images, {images.size(0), 2, groups});
  }

  // The call's part, without scratch memory.
  NextNorm call(int64_t channels, int64_t images) {
    return groups_ ? next_norm_call(groups_, eps_, channels, images, *counters_, *statistics_) : NextNorm{};
  }

  // Allocate the scratch memory of so many floats.
  void set_scratch(NextNorm& call, const Tensor& images, int64_t size) {
    if (!groups_) return;
    scratch_ = floats(images, {size});
    call.entries = write<float>(*scratch_);
  }

  const Tensor& statistics() const { return *statistics_; }

 private:
  int64_t groups_ = 0;
  double eps_ = 0.0;
  OptionalTensor counters_, statistics_, scratch_;
};

}  // namespace resshift::bindings

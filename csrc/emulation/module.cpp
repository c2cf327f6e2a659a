// The Python module through which tests call the kernels with NumPy arrays. It is not part of a wheel.
//
// Each file of kernels has its part of it in a header: pybind11's own headers are most of the time to compile one, so
// that all in one file take as long as two of them.
#include "bind_group_norm.h"
#include "bind_pointwise_conv2d.h"
#include "bind_residual_shift.h"
#include "bind_vector_quantize.h"
#include "bind_window_attention.h"
#include "bind_window_attention_proj.h"
#include "bindings.h"
#include "emulator.h"
#include "next_norm.h"

PYBIND11_MODULE(resshift_emulation, module) {
  using namespace emulation;
  module.doc() = "The CUDA kernels of csrc/cuda, executed on the CPU.";
  py::enum_<Order>(module, "Order")
      .value("ascending", Order::kAscending)
      .value("descending", Order::kDescending)
      .value("shuffled", Order::kShuffled);
  module.def("set_order", &set_order,
             "Order in which a block's threads run between barriers, and the blocks of a grid.");
  bind_group_norm(module);
  bind_next_norm(module);
  bind_pointwise_conv2d(module);
  bind_residual_shift(module);
  bind_selftest(module);
  bind_vector_quantize(module);
  bind_window_attention(module);
  bind_window_attention_proj(module);
}

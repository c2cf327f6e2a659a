// Deliberate faults of the kinds that kernels can have, for test_cpu_sanitizers.py.
#include "../../csrc/bindings/tensors.h"
#include "../../csrc/cpu/parallel.h"
#include "../../csrc/cpu/workspace.h"

namespace resshift::faults {
namespace {

using bindings::Tensor;
using cpu::parallel_for;
using cpu::Workspace;

double read(Tensor x, int64_t index) { return static_cast<const float*>(x.const_data_ptr())[index]; }

double read_scratch(int64_t floats, int64_t index) {
  const Workspace scratch(floats);
  return scratch.data()[index];
}

double read_variable(int64_t index) {
  float values[4];
  for (int64_t i = 0; i < index; ++i) values[i] = static_cast<float>(i);
  double total = 0.0;
  for (const float value : values) total += static_cast<double>(value);
  return total;
}

int64_t add(int64_t a, int64_t b) { return a + b; }

// Every subrange writes `beyond` elements of the next one.
void write(Tensor x, int64_t beyond) {
  auto* data = static_cast<float*>(x.mutable_data_ptr());
  parallel_for(0, x.numel() - beyond, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end + beyond; ++i) data[i] = 1.0f;
  });
}

// Every subrange writes its own elements and reads `beyond` elements of the next one.
void read_beyond(Tensor x, int64_t beyond) {
  auto* data = static_cast<float*>(x.mutable_data_ptr());
  parallel_for(0, x.numel() - beyond, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) data[i] = data[i + beyond] + 1.0f;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY(resshift_fast_faults, library) {
  library.def("read(Tensor x, int index) -> float");
  library.def("read_scratch(int floats, int index) -> float");
  library.def("read_variable(int index) -> float");
  library.def("add(int a, int b) -> int");
  library.def("write(Tensor(a!) x, int beyond) -> ()");
  library.def("read_beyond(Tensor(a!) x, int beyond) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_faults, CompositeExplicitAutograd, library) {
  library.impl("read", TORCH_BOX(&read));
  library.impl("read_scratch", TORCH_BOX(&read_scratch));
  library.impl("read_variable", TORCH_BOX(&read_variable));
  library.impl("add", TORCH_BOX(&add));
  library.impl("write", TORCH_BOX(&write));
  library.impl("read_beyond", TORCH_BOX(&read_beyond));
}

}  // namespace resshift::faults

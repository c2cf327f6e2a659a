// The parts of the Python module, and NumPy arrays as tensors of bindings/arguments.h: float32, float16, and uint16 for
// the bits of bfloat16.
//
// What the operators' tests pass is prepared as the bindings prepare tensors: arrays have the layouts that kernels
// read, and outputs and scratch memory come from the test, which fills them with NaN.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "../bindings/arguments.h"

namespace emulation {

namespace py = pybind11;

// An array by torch's names; strides are in elements.
class Array : public py::array {
 public:
  using py::array::array;
  using py::array::size;

  std::int64_t dim() const { return ndim(); }
  std::int64_t numel() const { return size(); }
  std::int64_t size(std::int64_t axis) const { return shape(axis); }
  std::int64_t stride(std::int64_t axis) const { return strides(axis) / itemsize(); }
  const void* const_data_ptr() const { return data(); }
  void* mutable_data_ptr() { return mutable_data(); }
};

using OptionalArray = std::optional<Array>;

void bind_selftest(py::module_& module);

inline resshift::Dtype dtype_of(const Array& array) {
  const char kind = array.dtype().kind();
  if (kind == 'f' && array.itemsize() == 4) return resshift::Dtype::kFloat32;
  if (kind == 'f' && array.itemsize() == 2) return resshift::Dtype::kFloat16;
  if (kind == 'u' && array.itemsize() == 2) return resshift::Dtype::kBFloat16;
  throw std::runtime_error("arrays are float32, float16, or uint16 with the bits of bfloat16");
}

// A launcher returns 0 here: what goes wrong is thrown.
inline void check(int error) {
  if (error) throw std::runtime_error("the launch failed with error " + std::to_string(error));
}

}  // namespace emulation

template <>
struct resshift::bindings::Traits<emulation::Array> {
  static Dtype dtype_of(const emulation::Array& x, const char*) { return emulation::dtype_of(x); }
  static bool same_device(const emulation::Array&, const emulation::Array&) { return true; }
};

// The parts of the Python module, and numpy arrays as the kernels' arguments: float32, float16, and uint16 for the bits
// of bfloat16.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "../common/residual_shift.h"

namespace emulation {

namespace py = pybind11;
using Array = py::array;
using OptionalArray = std::optional<py::array>;

// One for each file of kernels.
void bind_group_norm(py::module_& module);
void bind_residual_shift(py::module_& module);
void bind_selftest(py::module_& module);
void bind_vector_quantize(py::module_& module);
void bind_window_attention(py::module_& module);

inline resshift::Dtype dtype_of(const Array& array) {
  const char kind = array.dtype().kind();
  if (kind == 'f' && array.itemsize() == 4) return resshift::Dtype::kFloat32;
  if (kind == 'f' && array.itemsize() == 2) return resshift::Dtype::kFloat16;
  if (kind == 'u' && array.itemsize() == 2) return resshift::Dtype::kBFloat16;
  throw std::runtime_error("arrays are float32, float16, or uint16 with the bits of bfloat16");
}

// An array [B, C, H, W] whose rows follow one another.
inline resshift::View view_of(const OptionalArray& array) {
  if (!array) return {};
  if (array->ndim() != 4) throw std::runtime_error("images are [B, C, H, W]");
  auto stride = [&](int axis) { return array->strides(axis) / array->itemsize(); };
  const py::ssize_t height = array->shape(2), width = array->shape(3);
  if (height > 1 && width > 1 && stride(2) != width * stride(3))
    throw std::runtime_error("rows do not follow one another");
  return {array->data(), dtype_of(*array), stride(0), stride(1), width > 1 ? stride(3) : stride(2)};
}

inline const std::int64_t* integers_of(const OptionalArray& array) {
  return array ? static_cast<const std::int64_t*>(array->data()) : nullptr;
}

// What a launcher returns is 0 here: what goes wrong is thrown.
inline void check(int error) {
  if (error) throw std::runtime_error("the launch failed with error " + std::to_string(error));
}

}  // namespace emulation

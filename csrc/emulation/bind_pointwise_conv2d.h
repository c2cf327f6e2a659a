#pragma once

#include <vector>

#include "../bindings/pointwise_conv2d_call.h"
#include "../cuda/pointwise_conv2d.h"
#include "bindings.h"
#include "next_norm.h"

namespace emulation {

using namespace resshift;

// The normalization before the product; without groups there is none.
struct Norm {
  bindings::NormParameters<Array> parameters{};
  OptionalArray statistics;
};

inline void bind_pointwise_conv2d(py::module_& module) {
  py::class_<Norm>(module, "Norm")
      .def(py::init<>())
      .def(py::init([](std::int64_t groups, const Array& weight, const Array& bias, const Array& statistics) {
        return Norm{{groups, weight, bias}, statistics};
      }));
  // Statistics of y are written if `next` has groups. Returns how many floats of scratch memory they took.
  module.def("pointwise_conv2d",
             [](const Array& x, const Array& weight, const OptionalArray& bias, const OptionalArray& residual,
                const Norm& norm, Array& y, Next next, std::int64_t fill) {
               PointwiseConv2d call = bindings::pointwise_conv2d_call(x, weight, bias, residual, y);
               if (norm.parameters.groups) bindings::set_normalization(call, norm.parameters, x, *norm.statistics);
               if (!cuda::pointwise_conv2d_supported(call))
                 throw std::runtime_error("the kernels do not support this call");
               call.next = next.call(weight.size(0), y.size(0));
               std::vector<float> scratch(cuda::pointwise_conv2d_scratch(call, fill), NAN);
               call.next.entries = scratch.data();
               check(cuda::pointwise_conv2d(call, nullptr, fill));
               return scratch.size();
             });
}

}  // namespace emulation

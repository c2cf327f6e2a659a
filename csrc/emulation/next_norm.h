// The statistics of the next group normalization, as tests pass them.
#pragma once

#include "../bindings/result_call.h"
#include "bindings.h"

namespace emulation {

struct Next {
  std::int64_t groups = 0;  // 0: no statistics
  float eps = 0.0f;
  OptionalArray counters, statistics;

  resshift::NextNorm call(std::int64_t channels, std::int64_t images) {
    if (!groups) return {};
    return resshift::bindings::next_norm_call(groups, eps, channels, images, *counters, *statistics);
  }
};

inline void bind_next_norm(py::module_& module) {
  py::class_<Next>(module, "Next")
      .def(py::init<>())
      .def(py::init([](std::int64_t groups, float eps, const Array& counters, const Array& statistics) {
        return Next{groups, eps, counters, statistics};
      }));
}

}  // namespace emulation

#include "next_norm.h"

namespace emulation {

void bind_next_norm(py::module_& module) {
  py::class_<Next>(module, "Next")
      .def(py::init<>())
      .def(py::init([](std::int64_t groups, float eps, const Array& counters, const Array& statistics) {
        return Next{groups, eps, counters, statistics};
      }));
}

}  // namespace emulation

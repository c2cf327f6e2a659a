#pragma once

#include "../bindings/residual_shift_call.h"
#include "../cuda/residual_shift.h"
#include "bindings.h"

namespace emulation {

using namespace resshift;

inline void bind_residual_shift(py::module_& module) {
  module.def("chain_step", [](const Array& x, const OptionalArray& prediction, const OptionalArray& y,
                              const OptionalArray& noise, const OptionalArray& lq, const Array& coefficients,
                              const OptionalArray& seed, const OptionalArray& step, const OptionalArray& origin,
                              Array& x_out, OptionalArray next_input, int prediction_type, bool clamp_x0) {
    const bindings::ChainStepArguments<Array> given{x,    coefficients, prediction,      y,       noise, lq, seed,
                                                    step, origin,       prediction_type, clamp_x0};
    check(cuda::chain_step(bindings::chain_step_call(given, x_out, next_input), nullptr));
  });
  module.def("q_sample", [](const Array& x0, const Array& y, const Array& t, const Array& table, const Array& noise,
                            const Array& x_t) {
    const bindings::QSampleArguments<Array> given{x0, y, t, table, noise};
    check(cuda::q_sample(bindings::q_sample_call(given, x_t), nullptr));
  });
}

}  // namespace emulation

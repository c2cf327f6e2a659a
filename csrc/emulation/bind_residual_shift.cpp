#include "../cuda/residual_shift.h"
#include "bindings.h"

namespace emulation {

using namespace resshift;

void bind_residual_shift(py::module_& module) {
  module.def("chain_step", [](const Array& x, const OptionalArray& prediction, const OptionalArray& y,
                              const OptionalArray& noise, const OptionalArray& lq, const Array& coefficients,
                              const OptionalArray& seed, const OptionalArray& step, const OptionalArray& origin,
                              Array& x_out, Array& next_input, int prediction_type, bool clamp_x0) {
    const ChainStep call{view_of(x),
                         view_of(prediction),
                         view_of(y),
                         view_of(noise),
                         view_of(lq),
                         static_cast<const float*>(coefficients.data()),
                         integers_of(seed),
                         integers_of(step),
                         integers_of(origin),
                         static_cast<float*>(x_out.mutable_data()),
                         next_input.mutable_data(),
                         dtype_of(next_input),
                         x.shape(0),
                         x.shape(1),
                         lq ? lq->shape(1) : 0,
                         x.shape(2),
                         x.shape(3),
                         static_cast<PredictionType>(prediction_type),
                         clamp_x0};
    check(cuda::chain_step(call, nullptr));
  });
  module.def("q_sample",
             [](const Array& x0, const Array& y, const Array& t, const Array& table, const Array& noise, Array& x_t) {
               const QSample call{view_of(x0),  view_of(y),      view_of(noise),           integers_of(t),
                                  table.data(), dtype_of(table), table.shape(0),           view_of(x_t),
                                  x0.shape(0),  x0.shape(1),     x0.shape(2) * x0.shape(3)};
               check(cuda::q_sample(call, nullptr));
             });
}

}  // namespace emulation

// The arguments of posterior_step, prior_sample and q_sample, from tensors.
#pragma once

#include "../common/residual_shift.h"
#include "arguments.h"

namespace resshift::bindings {

// The tensors of posterior_step or, without a prediction, of prior_sample, where x is y. Those that the step does not
// use are left out: y unless x̂_0 needs it, seed and step where no noise is drawn.
template <class Array>
struct ChainStepArguments {
  Array x, coefficients;
  std::optional<Array> prediction = {}, y = {}, noise = {}, lq = {}, seed = {}, step = {}, origin = {};
  std::int64_t prediction_type = 0;
  bool clamp_x0 = false;
};

template <class Array>
ChainStep chain_step_call(const ChainStepArguments<Array>& given, Array& x_out, std::optional<Array>& next_input) {
  const Array& x = given.x;
  const auto dtype = [&] {
    if (next_input) return dtype_of(*next_input, "next_dtype");
    return given.prediction ? dtype_of(*given.prediction, "prediction") : Dtype::kFloat32;
  };
  return {view_of(x, "the latent"),
          view_of(given.prediction, "prediction"),
          view_of(given.y, "y"),
          view_of(given.noise, "noise"),
          view_of(given.lq, "lq"),
          read<float>(given.coefficients),
          read<std::int64_t>(given.seed),
          read<std::int64_t>(given.step),
          read<std::int64_t>(given.origin),
          write<float>(x_out),
          next_input ? write<void>(*next_input) : nullptr,
          dtype(),
          x.size(0),
          x.size(1),
          given.lq ? given.lq->size(1) : 0,
          x.size(2),
          x.size(3),
          static_cast<PredictionType>(given.prediction_type),
          given.clamp_x0};
}

template <class Array>
struct QSampleArguments {
  Array x0, y, t, table, noise;
};

template <class Array>
QSample q_sample_call(const QSampleArguments<Array>& given, const Array& x_t) {
  const Array &x0 = given.x0, &table = given.table;
  return {view_of(x0, "x0"),
          view_of(given.y, "y"),
          view_of(given.noise, "noise"),
          read<std::int64_t>(given.t),
          read<void>(table),
          dtype_of(table, "table"),
          table.size(0),
          view_of(x_t, "x_t"),
          x0.size(0),
          x0.size(1),
          x0.size(2) * x0.size(3)};
}

}  // namespace resshift::bindings

// The arguments of posterior_step, prior_sample and q_sample, and the posterior mean; ops/residual_shift.py has the
// formulas.
#pragma once

#include <cstdint>

#include "platform.h"
#include "scalar.h"
#include "view.h"

namespace resshift {

// Columns of a coefficient row, as in resshift_fast/diffusion/schedule.py.
enum Column { kEta, kOneMinusEta, kKappaSqrtEta, kMeanXt, kMeanX0, kNoiseStd, kInputScale, kNextInputScale, kColumns };

// As in schedule.PREDICTION_TYPES.
enum class PredictionType : std::int32_t { kX0, kEpsilon, kEpsilonScaled, kResidual };

// posterior_step or, without a prediction, prior_sample, where x is y.
struct ChainStep {
  View x, prediction, y, noise, lq;  // y only where x̂_0 needs it, noise only where it is given
  const float* coefficients;         // [8]
  const std::int64_t* seed;          // [B], or null: no noise is drawn
  const std::int64_t* step;          // [], or null: step 0
  const std::int64_t* origin;        // [B, 2] (row, column), or null
  float* x_out;                      // [B, C, pixels]
  void* next_input;                  // [B, pixels, C + C_lq], or null
  Dtype next_dtype;                  // without a next input, the prediction's
  std::int64_t batch, channels, lq_channels, height, width;
  PredictionType prediction_type;
  bool clamp_x0;
};

// The images have one dtype.
struct QSample {
  View x0, y, noise;
  const std::int64_t* t;  // [B]
  const void* table;      // [T, 8]
  Dtype table_dtype;
  std::int64_t num_steps;
  View x_t;  // written
  std::int64_t batch, channels, pixels;
};

// Mean of q(x_{t−1} | x_t, x̂_0) from the network's prediction.
RSF_INLINE float posterior_mean(const float* coefficients, PredictionType type, bool clamp_x0, float x_t,
                                float prediction, float y) {
  float x0 = prediction;
  if (type == PredictionType::kResidual) {
    x0 = y - prediction;
  } else if (type != PredictionType::kX0) {
    if (type == PredictionType::kEpsilon) x0 *= coefficients[kKappaSqrtEta];
    x0 = (x_t - coefficients[kEta] * y - x0) / coefficients[kOneMinusEta];
  }
  if (clamp_x0) x0 = x0 < -1.0f ? -1.0f : x0 > 1.0f ? 1.0f : x0;  // NaN passes through
  return coefficients[kMeanXt] * x_t + coefficients[kMeanX0] * x0;
}

}  // namespace resshift

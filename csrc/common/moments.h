// Count, mean and sum of squared deviations of a set of values.
#pragma once

#include "platform.h"

namespace resshift {

// Squares are of deviations from the mean, so that nothing large cancels (Welford, Technometrics 4, 1962). Values with
// a mean far from 0 are shifted first.
struct Moments {
  float count = 0.0f, mean = 0.0f, squares = 0.0f;

  RSF_INLINE float variance() const { return squares / count; }
};

}  // namespace resshift

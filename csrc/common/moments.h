// Count, mean and sum of squared deviations of a set of numbers.
#pragma once

#include "platform.h"

namespace resshift {

// Of what has a mean near 0 by itself, or by a shift: squares are of deviations, so that nothing large cancels
// (Welford, Technometrics 4, 1962).
struct Moments {
  float count = 0.0f, mean = 0.0f, squares = 0.0f;

  RSF_INLINE float variance() const { return squares / count; }
};

}  // namespace resshift

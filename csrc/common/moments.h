// Count, mean and sum of squared deviations of a set of numbers, and how those of two sets merge.
#pragma once

#include "platform.h"

namespace resshift {

// Merging never subtracts large squares: nothing cancels where the mean is far larger than the deviation.
struct Moments {
  float count = 0.0f, mean = 0.0f, squares = 0.0f;

  // Welford, Technometrics 4 (1962).
  RSF_INLINE void add(float x) {
    count += 1.0f;
    const float difference = x - mean;
    mean += difference / count;
    squares += difference * (x - mean);
  }

  // Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
  RSF_INLINE void merge(const Moments& other) {
    const float total = count + other.count;
    if (total == 0.0f) return;
    const float difference = other.mean - mean, share = other.count / total;
    mean += difference * share;
    squares += other.squares + difference * difference * count * share;
    count = total;
  }

  RSF_INLINE float variance() const { return squares / count; }
};

}  // namespace resshift

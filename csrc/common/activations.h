// SiLU and GELU with their derivatives.
#pragma once

#include <cmath>

#include "platform.h"

namespace resshift {

RSF_INLINE float sigmoid(float z) {
  const float denominator = 1.0f + expf(-z);
#if RSF_ON_GPU
  // Within an ulp for a denominator of 1 or more; an exact division takes a branch and a subroutine for every value.
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(denominator));
  return result;
#else
  return 1.0f / denominator;
#endif
}

// z σ(z); arXiv 1702.03118.
RSF_INLINE float silu(float z) { return z * sigmoid(z); }

// σ(z) (1 + z (1 − σ(z)))
RSF_INLINE float silu_derivative(float z) {
  const float s = sigmoid(z);
  return s * (1.0f + z * (1.0f - s));
}

// z Φ(z) with the normal distribution Φ; arXiv 1606.08415, its exact form.
RSF_INLINE float gelu(float z) { return 0.5f * z * (1.0f + erff(z * 0.70710678118654752f)); }

// Φ(z) + z φ(z)
RSF_INLINE float gelu_derivative(float z) {
  return 0.5f * (1.0f + erff(z * 0.70710678118654752f)) + z * 0.39894228040143268f * expf(-0.5f * z * z);
}

}  // namespace resshift

// The transforms of Winograd's convolution F(m, 3) (Lavin and Gray, arXiv 1509.09308), constructed by the Toom-Cook
// algorithm from the points 0, ±p_1, …, ±p_P and ∞: m = 2P outputs of n = 2P + 2 inputs.
//
//   y = Aᵀ (G g ∘ Bᵀ d)
//
// The two points of a pair ±p share the even and the odd part of their polynomials, which halves the multiplications.
// Bᵀ holds the polynomials that vanish at all other points, G divides by their values at the point, Aᵀ holds its
// powers.
#pragma once

#include "simd.h"

namespace resshift::cpu::RSF_ISA {

template <int Pairs>
struct Points;

// Those with the least error among small fractions whose denominators are powers of two, so that most coefficients are
// exact.
template <>
struct Points<2> {
  static constexpr double values[] = {0.75, 1.5};
};

template <>
struct Points<3> {
  static constexpr double values[] = {0.5, 1.0, 2.0};
};

template <>
struct Points<4> {
  static constexpr double values[] = {0.375, 0.75, 1.3125, 2.5};
};

template <int Pairs>
struct Coefficients {
  float input[Pairs][Pairs] = {};  // of x^(2k) in Π_{j≠i} (x² − p_j²); the leading one is 1
  float edge[Pairs + 1] = {};      // of x^(2k) in Π_j (x² − p_j²)
  float point[Pairs] = {};
  float weight[Pairs][3] = {};  // 1, p and p² over the polynomial's value at the point
  float weight_at_0 = 0;
  float power[Pairs][2 * Pairs] = {};

  constexpr Coefficients() {
    const auto& p = Points<Pairs>::values;
    double all[Pairs + 1] = {1};
    for (int j = 0; j < Pairs; ++j) extend(all, j + 1, p[j] * p[j]);
    for (int k = 0; k <= Pairs; ++k) edge[k] = static_cast<float>(all[k]);
    weight_at_0 = static_cast<float>(1 / all[0]);
    for (int i = 0; i < Pairs; ++i) {
      double others[Pairs + 1] = {1};
      double value = 2 * p[i] * p[i];  // of the polynomial without (x − p_i), at p_i
      for (int j = 0, degree = 1; j < Pairs; ++j) {
        if (j == i) continue;
        extend(others, degree++, p[j] * p[j]);
        value *= p[i] * p[i] - p[j] * p[j];
      }
      double power_of_p = 1;
      for (int k = 0; k < 2 * Pairs; ++k, power_of_p *= p[i]) {
        if (k < Pairs) input[i][k] = static_cast<float>(others[k]);
        if (k < 3) weight[i][k] = static_cast<float>(power_of_p / value);
        power[i][k] = static_cast<float>(power_of_p);
      }
      point[i] = static_cast<float>(p[i]);
    }
  }

  // Multiply the polynomial of `degree` terms in x² by x² − square.
  static constexpr void extend(double* terms, int degree, double square) {
    for (int k = degree; k >= 0; --k) terms[k] = (k ? terms[k - 1] : 0) - square * (k < degree ? terms[k] : 0);
  }
};

// In the transformed domain: 0 first, then p_1, −p_1, p_2, …, ∞ last.
template <int Pairs>
struct Transform {
  static constexpr int kOutputs = 2 * Pairs, kInputs = 2 * Pairs + 2;
  static constexpr Coefficients<Pairs> kValues{};

  static RSF_INLINE void input(const Floats (&d)[kInputs], Floats (&v)[kInputs]) {
    Floats first = kValues.edge[0] * d[0], last = kValues.edge[0] * d[1];
    for (int k = 1; k < Pairs; ++k) {
      first += kValues.edge[k] * d[2 * k];
      last += kValues.edge[k] * d[2 * k + 1];
    }
    v[0] = first + d[2 * Pairs];
    v[kInputs - 1] = last + d[2 * Pairs + 1];
    for (int i = 0; i < Pairs; ++i) {
      Floats even = d[2 * Pairs], odd = d[2 * Pairs - 1];
      for (int k = 0; k < Pairs - 1; ++k) {
        even += kValues.input[i][k] * d[2 * k + 2];
        odd += kValues.input[i][k] * d[2 * k + 1];
      }
      v[2 * i + 1] = even + kValues.point[i] * odd;
      v[2 * i + 2] = even - kValues.point[i] * odd;
    }
  }

  static RSF_INLINE void weight(const Floats (&g)[3], Floats (&u)[kInputs]) {
    u[0] = kValues.weight_at_0 * g[0];
    u[kInputs - 1] = g[2];
    for (int i = 0; i < Pairs; ++i) {
      const Floats even = kValues.weight[i][0] * g[0] + kValues.weight[i][2] * g[2];
      const Floats odd = kValues.weight[i][1] * g[1];
      u[2 * i + 1] = even + odd;
      u[2 * i + 2] = even - odd;
    }
  }

  static RSF_INLINE void output(const Floats (&m)[kInputs], Floats (&y)[kOutputs]) {
    Floats sums[Pairs], differences[Pairs];
    for (int i = 0; i < Pairs; ++i) {
      sums[i] = m[2 * i + 1] + m[2 * i + 2];
      differences[i] = m[2 * i + 1] - m[2 * i + 2];
    }
    for (int k = 0; k < kOutputs; ++k) {
      const Floats(&terms)[Pairs] = k % 2 ? differences : sums;
      Floats total = k == 0 ? m[0] + terms[0] : kValues.power[0][k] * terms[0];
      for (int i = 1; i < Pairs; ++i) total += kValues.power[i][k] * terms[i];
      y[k] = k == kOutputs - 1 ? total + m[kInputs - 1] : total;
    }
  }

  // The transposed transforms, for gradients.
  static RSF_INLINE void from_output(const Floats (&y)[kOutputs], Floats (&m)[kInputs]) {
    m[0] = y[0];
    m[kInputs - 1] = y[kOutputs - 1];
    for (int i = 0; i < Pairs; ++i) {
      Floats even = y[0], odd = kValues.power[i][1] * y[1];
      for (int k = 2; k < kOutputs; k += 2) {
        even += kValues.power[i][k] * y[k];
        odd += kValues.power[i][k + 1] * y[k + 1];
      }
      m[2 * i + 1] = even + odd;
      m[2 * i + 2] = even - odd;
    }
  }

  static RSF_INLINE void to_weight(const Floats (&u)[kInputs], Floats (&g)[3]) {
    g[0] = kValues.weight_at_0 * u[0];
    g[1] = Floats{};
    g[2] = u[kInputs - 1];
    for (int i = 0; i < Pairs; ++i) {
      const Floats sum = u[2 * i + 1] + u[2 * i + 2];
      g[0] += kValues.weight[i][0] * sum;
      g[1] += kValues.weight[i][1] * (u[2 * i + 1] - u[2 * i + 2]);
      g[2] += kValues.weight[i][2] * sum;
    }
  }
};

}  // namespace resshift::cpu::RSF_ISA

// The noise field: standard normals as a pure function of (seed, step, channel, row, column), as defined in
// resshift_fast/diffusion/noise.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "platform.h"
#include "scalar.h"

namespace resshift {

struct Words {
  std::uint32_t r0, r1, r2, r3;
};

struct Normals {
  float z0, z1, z2, z3;

  RSF_INLINE float operator[](int i) const { return i == 0 ? z0 : i == 1 ? z1 : i == 2 ? z2 : z3; }
};

// Philox4x32-10 (Salmon et al., SC 2011); the key is the seed's low and high 32 bits.
RSF_INLINE Words philox4x32(Words counter, std::uint64_t seed) {
  constexpr std::uint64_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  std::uint32_t key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
#if RSF_ON_GPU
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = kMultiplier0 * counter.r0, p1 = kMultiplier1 * counter.r2;
    counter = {static_cast<std::uint32_t>(p1 >> 32) ^ counter.r1 ^ key0, static_cast<std::uint32_t>(p1),
               static_cast<std::uint32_t>(p0 >> 32) ^ counter.r3 ^ key1, static_cast<std::uint32_t>(p0)};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return counter;
}

// The natural logarithm of a normal number in (0, 1]. Unlike a call of the C library's, it is vectorized on a CPU.
//
// u = m 2ᵉ with m from √½ to √2, and ln(1 + f) = f − f²/2 + f³ P(f) with a minimax polynomial within 6e-9 before
// rounding. ln 2 is the sum of a part with few bits, whose product with e is exact, and the rest.
RSF_INLINE float log_of(float u) {
#if RSF_ON_GPU
  return logf(u);
#else
  constexpr std::uint32_t kSqrtHalf = 0x3f3504f3u;
  const std::uint32_t distance = bit_cast<std::uint32_t>(u) - kSqrtHalf;
  const float e = static_cast<float>(static_cast<std::int32_t>(distance) >> 23);
  const float f = bit_cast<float>((distance & 0x7fffffu) + kSqrtHalf) - 1.0f;
  float p = 0.12761402f - 0.0763405934f * f;
  p = -0.13160260f + p * f;
  p = 0.14201787f + p * f;
  p = -0.16623351f + p * f;
  p = 0.20001225f + p * f;
  p = -0.25000823f + p * f;
  p = 0.33333331f + p * f;
  return e * 0.693359375f + (f + (e * -2.12194440e-4f + f * f * (f * p - 0.5f)));
#endif
}

// Two normals √(−2 ln u) (cos 2πv, sin 2πv) of two words, where a word r gives ((r >> 9) + 1/2) 2⁻²³.
//
// That is (r >> 8 | 1) 2⁻²⁴, so the angle is reduced to ±1/8 turn exactly, in integers. Minimax polynomials then give
// sin(π f/2) and cos(π f/2) for |f| ≤ 1/2, within 5e-9 and 6e-11 before rounding. The same operations on every device
// give nearly the same results, and a GPU's own cosine has a slow path for huge arguments.
RSF_INLINE void box_muller(std::uint32_t radius_word, std::uint32_t angle_word, float& z_cos, float& z_sin) {
  const float u = static_cast<float>(radius_word >> 8 | 1u) * 5.9604644775390625e-08f;
  const float radius = sqrtf(-2.0f * log_of(u));
  const std::int32_t turn = static_cast<std::int32_t>(angle_word >> 8 | 1u);  // in units of 2⁻²⁴ turns
  const std::int32_t quarter = (turn + (1 << 21)) >> 22;
  const float f = static_cast<float>(turn - quarter * (1 << 22)) * 2.384185791015625e-07f;  // quarter turns
  const float f2 = f * f;
  const float sine = f * (1.5707964f + f2 * (-0.6459635f + f2 * (0.07968023f + f2 * -0.004602177f)));
  const float cosine = 1.0f + f2 * (-1.2337005f + f2 * (0.25366923f + f2 * (-0.020860288f + f2 * 0.00090402167f)));
  const bool odd = quarter & 1;
  const float c = odd ? sine : cosine, s = odd ? cosine : sine;
  z_cos = radius * ((quarter + 1) & 2 ? -c : c);
  z_sin = radius * (quarter & 2 ? -s : s);
}

// The field at one pixel, for channels 4 · group … 4 · group + 3.
RSF_INLINE Normals noise(std::uint64_t seed, std::uint32_t step, std::uint32_t group, std::uint32_t row,
                         std::uint32_t column) {
  const Words words = philox4x32({column, row, group, step}, seed);
  Normals z;
  box_muller(words.r0, words.r1, z.z0, z.z1);
  box_muller(words.r2, words.r3, z.z2, z.z3);
  return z;
}

}  // namespace resshift

// Vectors of float32 as wide as the instruction set that a file is compiled for, and elementary functions of them. They
// are the compiler's vector types, which have operators for arithmetic and comparisons.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>

#include "../../common/scalar.h"
#include "../isa.h"

#if !defined(RSF_ISA)
#error "RSF_ISA must name the instruction set, as in setup.py"
#endif

namespace resshift::cpu::RSF_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / 4;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

typedef float Floats __attribute__((vector_size(kVectorBytes)));
typedef std::int32_t Ints __attribute__((vector_size(kVectorBytes)));
typedef std::uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef std::uint16_t Shorts __attribute__((vector_size(kVectorBytes / 2)));
struct __attribute__((packed, may_alias)) UnalignedFloats {
  Floats value;
};
struct __attribute__((packed, may_alias)) UnalignedShorts {
  Shorts value;
};

RSF_INLINE Floats broadcast(float value) { return value - Floats{}; }

// A factor that multiplies whole vectors. NEON multiplies by one element of a register: loaded alone it takes no turn
// of the units that multiply, as it does where compilers repeat it for all lanes first.
RSF_INLINE Floats broadcast_factor(float factor) {
#if defined(__aarch64__)
  asm("" : "+w"(factor));
#endif
  return broadcast(factor);
}

RSF_INLINE Floats load(const float* address) { return reinterpret_cast<const UnalignedFloats*>(address)->value; }

RSF_INLINE void store(float* address, Floats value) { reinterpret_cast<UnalignedFloats*>(address)->value = value; }

RSF_INLINE Floats load(const BFloat16* address) {
  const Shorts bits = reinterpret_cast<const UnalignedShorts*>(address)->value;
  return reinterpret_cast<Floats>(__builtin_convertvector(bits, Words) << 16);
}

RSF_INLINE void store(BFloat16* address, Floats value) {
#if defined(__AVX512BF16__)
  const __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(value));
  std::memcpy(address, &rounded, sizeof(rounded));
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  const bfloat16x4_t rounded = vcvt_bf16_f32(reinterpret_cast<float32x4_t>(value));
  std::memcpy(address, &rounded, sizeof(rounded));
#else
  const Words bits = reinterpret_cast<Words>(value);
  const Words rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const Words nan = reinterpret_cast<Words>(value != value);
  const Words kept = (nan & (bits >> 16 | 0x40u)) | (~nan & rounded);
  reinterpret_cast<UnalignedShorts*>(address)->value = __builtin_convertvector(kept, Shorts);
#endif
}

#if defined(__AVX512F__)
RSF_INLINE Floats load(const Half* address) {
  return reinterpret_cast<Floats>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(address))));
}

RSF_INLINE void store(Half* address, Floats value) {
  const __m256i rounded = _mm512_cvtps_ph(reinterpret_cast<__m512>(value), _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(address), rounded);
}
#elif defined(__F16C__)
RSF_INLINE Floats load(const Half* address) {
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(address))));
}

RSF_INLINE void store(Half* address, Floats value) {
  const __m128i rounded = _mm256_cvtps_ph(reinterpret_cast<__m256>(value), _MM_FROUND_TO_NEAREST_INT);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(address), rounded);
}
#elif defined(__aarch64__)
RSF_INLINE Floats load(const Half* address) {
  float16x4_t values;
  std::memcpy(&values, address, sizeof(values));
  return reinterpret_cast<Floats>(vcvt_f32_f16(values));
}

RSF_INLINE void store(Half* address, Floats value) {
  const float16x4_t rounded = vcvt_f16_f32(reinterpret_cast<float32x4_t>(value));
  std::memcpy(address, &rounded, sizeof(rounded));
}
#else
RSF_INLINE Floats load(const Half* address) {
  Floats value;
  for (int i = 0; i < kLanes; ++i) value[i] = to_float(address[i]);
  return value;
}

RSF_INLINE void store(Half* address, Floats value) {
  for (int i = 0; i < kLanes; ++i) address[i] = from_float<Half>(value[i]);
}
#endif

RSF_INLINE std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// Load the first `count` elements, and zeros for the others; count may be kLanes or more.
template <class T>
RSF_INLINE Floats load(const T* address, std::int64_t count) {
  if (count >= kLanes) return load(address);
  T padded[kLanes] = {};
  for (std::int64_t i = 0; i < count; ++i) padded[i] = address[i];
  return load(padded);
}

// Store the first `count` elements; count may be kLanes or more.
template <class T>
RSF_INLINE void store(T* address, Floats value, std::int64_t count) {
  if (count >= kLanes) return store(address, value);
  T padded[kLanes];
  store(padded, value);
  for (std::int64_t i = 0; i < count; ++i) address[i] = padded[i];
}

// Prefetch the cache lines of two vectors.
template <class T>
RSF_INLINE void prefetch(const T* address) {
  for (int byte = 0; byte < 2 * kLanes * static_cast<int>(sizeof(T)); byte += 64) {
    __builtin_prefetch(reinterpret_cast<const char*>(address) + byte);
  }
}

RSF_INLINE Floats select(Ints condition, Floats yes, Floats no) { return condition ? yes : no; }

// a < b ? yes : no, and a > b. On arm64 GCC takes several instructions for them, where operands could be NaN. Macros,
// as compilers for x86 make more of the plain expression than of a function with it.
#if defined(__aarch64__)
RSF_INLINE Floats select_if_less(Floats a, Floats b, Floats yes, Floats no) {
  const uint32x4_t less = vcltq_f32(reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b));
  return reinterpret_cast<Floats>(
      vbslq_f32(less, reinterpret_cast<float32x4_t>(yes), reinterpret_cast<float32x4_t>(no)));
}
#define RSF_IF_LESS(a, b, yes, no) select_if_less(a, b, yes, no)
#define RSF_IF_GREATER(a, b, yes, no) select_if_less(b, a, yes, no)
#else
#define RSF_IF_LESS(a, b, yes, no) ((a) < (b) ? (yes) : (no))
#define RSF_IF_GREATER(a, b, yes, no) ((a) > (b) ? (yes) : (no))
#endif

// If either is NaN, the result is b. That is one instruction, where compilers emit two.
RSF_INLINE Floats maximum(Floats a, Floats b) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<Floats>(_mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#else
  return RSF_IF_GREATER(a, b, a, b);
#endif
}

RSF_INLINE Floats minimum(Floats a, Floats b) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_min_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<Floats>(_mm256_min_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#else
  return RSF_IF_LESS(a, b, a, b);
#endif
}

RSF_INLINE float sum(Floats x) {
  float total = 0.0f;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
}

RSF_INLINE float largest(Floats x) {
  float result = x[0];
  for (int i = 1; i < kLanes; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

// e^x within 2 ulp; 0 below −87.3, e^88.3 above 88.3, NaN for NaN.
RSF_INLINE Floats exp(Floats x) {
  const Floats low = broadcast(-87.3f), high = broadcast(88.3f);
  const Floats clamped = RSF_IF_LESS(x, low, low, RSF_IF_GREATER(x, high, high, x));
  // x = n ln 2 + r with |r| ≤ ln 2 / 2: adding and subtracting 1.5·2²³ rounds to the nearest integer.
  const Floats magic = broadcast(12582912.0f);
  const Floats shifted = clamped * 1.44269504f + magic;
  const Floats n = shifted - magic;
  const Floats r = (clamped - n * 0.693145752f) - n * 1.42860677e-6f;
  // Minimax polynomial of e^r.
  Floats p = broadcast(1.38888889e-3f);
  p = p * r + 8.33333377e-3f;
  p = p * r + 4.16666418e-2f;
  p = p * r + 1.66666660e-1f;
  p = p * r + 0.5f;
  p = (p * r) * r + r + 1.0f;
  const Words exponent = reinterpret_cast<Words>(shifted) << 23;
  const Floats result = reinterpret_cast<Floats>(reinterpret_cast<Words>(p) + exponent);
  return RSF_IF_LESS(x, low, Floats{}, result);
}

// 1 / x within 2 ulp, for normal x below 2^126.
RSF_INLINE Floats reciprocal(Floats x) {
#if defined(__AVX512F__)
  const Floats guess = reinterpret_cast<Floats>(_mm512_rcp14_ps(reinterpret_cast<__m512>(x)));
  return guess * (2.0f - x * guess);
#else
  return 1.0f / x;
#endif
}

// 1 / (1 + e^−z) for z ≥ −87, with a relative error of 1e-6, or 4e-6 below −15. It takes fewer operations than with
// exp, whose error is smaller.
RSF_INLINE Floats bounded_sigmoid(Floats z) {
  const Floats magic = broadcast(12582912.0f), bounded = minimum(broadcast(87.0f), z);
  const Floats shifted = bounded * -1.44269504f + magic;
  const Floats f = bounded * -1.44269504f - (shifted - magic);
  // Minimax polynomial of 2^f for |f| ≤ 1/2.
  Floats p = broadcast(1.32764725e-3f);
  p = p * f + 9.67554189e-3f;
  p = p * f + 5.55071309e-2f;
  p = p * f + 2.40221202e-1f;
  p = p * f + 6.93146944e-1f;
  p = p * f + 1.0f;
  const Words exponent = reinterpret_cast<Words>(shifted) << 23;
  return reciprocal(1.0f + reinterpret_cast<Floats>(reinterpret_cast<Words>(p) + exponent));
}

RSF_INLINE Floats sigmoid(Floats z) { return bounded_sigmoid(maximum(broadcast(-87.0f), z)); }

// z σ(z); arXiv 1702.03118. Below −87 it is that of −87, about −1e-36.
RSF_INLINE Floats silu(Floats z) {
  const Floats bounded = maximum(broadcast(-87.0f), z);
  return bounded * bounded_sigmoid(bounded);
}

// z Φ(z) with the normal distribution Φ, arXiv 1606.08415; Φ within 1e-7 (Abramowitz and Stegun, 7.1.26).
RSF_INLINE Floats gelu(Floats z) {
  const Floats x = z * 0.70710678f, magnitude = x < 0.0f ? -x : x;
  const Floats t = reciprocal(1.0f + 0.3275911f * magnitude);
  Floats p = broadcast(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Floats tail = 0.5f * (p * t) * exp(-x * x);  // 1 − Φ(|z|)
  return z * RSF_IF_LESS(z, Floats{}, tail, 1.0f - tail);
}

}  // namespace resshift::cpu::RSF_ISA

// Element types: float32, and float16 and bfloat16 as bits that are converted to float32 for arithmetic.
#pragma once

#include <cstdint>
#include <cstring>

#include "platform.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace resshift {

enum class Dtype : std::int32_t { kFloat32, kFloat16, kBFloat16 };

// Bytes of an element.
RSF_INLINE int size_of(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

struct Half {
  std::uint16_t bits;
};

struct BFloat16 {
  std::uint16_t bits;
};

template <class To, class From>
RSF_INLINE To bit_cast(const From& value) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast changes the type, not the size");
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}

// Half to float32: the exponent's bias changes from 15 to 127, and a subtraction normalizes subnormals.
RSF_HOST float half_bits_to_float(std::uint16_t bits) {
  std::uint32_t magnitude = (bits & 0x7fffu) << 13;
  const std::uint32_t exponent = magnitude & 0x0f800000u;
  magnitude += 112u << 23;
  if (exponent == 0x0f800000u) magnitude += 112u << 23;  // infinity or NaN
  if (exponent == 0) magnitude = bit_cast<std::uint32_t>(bit_cast<float>(magnitude + (1u << 23)) - 6.103515625e-05f);
  return bit_cast<float>(magnitude | (bits & 0x8000u) << 16);
}

// Float32 to half, to the nearest, ties to even.
RSF_HOST std::uint16_t float_to_half_bits(float value) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t result;
  if (magnitude >= 0x47800000u) {  // from 65536 on
    result = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // Below the smallest normal half: adding 0.5 aligns the bits, and the sum rounds them.
    result = bit_cast<std::uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    result = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  return static_cast<std::uint16_t>(result | (bits >> 16 & 0x8000u));
}

RSF_HOST std::uint16_t float_to_bfloat16_bits(float value) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

RSF_INLINE float to_float(float value) { return value; }

RSF_INLINE float to_float(Half value) {
#if RSF_ON_GPU
  return __half2float(__ushort_as_half(value.bits));
#else
  return half_bits_to_float(value.bits);
#endif
}

RSF_INLINE float to_float(BFloat16 value) { return bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16); }

template <class T>
RSF_INLINE T from_float(float value);

template <>
RSF_INLINE float from_float<float>(float value) {
  return value;
}

template <>
RSF_INLINE Half from_float<Half>(float value) {
#if RSF_ON_GPU
  return {__half_as_ushort(__float2half_rn(value))};
#else
  return {float_to_half_bits(value)};
#endif
}

template <>
RSF_INLINE BFloat16 from_float<BFloat16>(float value) {
#if RSF_ON_GPU
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
  return {float_to_bfloat16_bits(value)};
#endif
}

// Two 16-bit values in one register, the first in its low half, as matrix instructions take them.
template <class T>
RSF_INLINE std::uint32_t pack2(float low, float high) {
  static_assert(sizeof(T) == 2, "two 16-bit values fill a register");
  return from_float<T>(low).bits | static_cast<std::uint32_t>(from_float<T>(high).bits) << 16;
}

#if defined(__CUDACC__)
// One instruction converts both.
template <>
RSF_INLINE std::uint32_t pack2<Half>(float low, float high) {
  return bit_cast<std::uint32_t>(__floats2half2_rn(low, high));
}

template <>
RSF_INLINE std::uint32_t pack2<BFloat16>(float low, float high) {
  return bit_cast<std::uint32_t>(__floats2bfloat162_rn(low, high));
}
#endif

// N elements that are loaded and stored at once; before sm_100 the widest access is 16 bytes.
template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T values[N];

  RSF_INLINE T& operator[](int i) { return values[i]; }
  RSF_INLINE const T& operator[](int i) const { return values[i]; }
};

template <int N, class T>
RSF_INLINE Vector<T, N> load_vector(const T* address) {
  return *reinterpret_cast<const Vector<T, N>*>(address);
}

template <int N, class T>
RSF_INLINE void store_vector(T* address, const Vector<T, N>& value) {
  *reinterpret_cast<Vector<T, N>*>(address) = value;
}

template <class T>
struct Type {
  using type = T;
};

// Call `function` with the Type<T> of a dtype.
template <class Function>
RSF_HOST auto dispatch(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::kFloat16:
      return function(Type<Half>{});
    case Dtype::kBFloat16:
      return function(Type<BFloat16>{});
    default:
      return function(Type<float>{});
  }
}

}  // namespace resshift

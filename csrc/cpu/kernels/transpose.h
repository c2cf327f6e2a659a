// Transposition of kLanes vectors in registers.
#pragma once

#include "simd.h"

namespace resshift::cpu::RSF_ISA {

#if defined(__clang__)
#define RSF_INTERLEAVE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define RSF_INTERLEAVE(a, b, ...) __builtin_shuffle(a, b, Ints{__VA_ARGS__})
#endif

// The first halves of a and b interleaved lane by lane, and the second halves.
RSF_INLINE Floats first_halves(Floats a, Floats b) {
#if defined(__AVX512F__)
  return RSF_INTERLEAVE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif defined(__AVX2__)
  return RSF_INTERLEAVE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return RSF_INTERLEAVE(a, b, 0, 4, 1, 5);
#endif
}

RSF_INLINE Floats second_halves(Floats a, Floats b) {
#if defined(__AVX512F__)
  return RSF_INTERLEAVE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
  return RSF_INTERLEAVE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return RSF_INTERLEAVE(a, b, 2, 6, 3, 7);
#endif
}

#undef RSF_INTERLEAVE

// Transpose by interleaving the first half of the rows with the second log₂ kLanes times.
RSF_INLINE void transpose(Floats (&rows)[kLanes]) {
#pragma GCC unroll 4
  for (int done = 1; done < kLanes; done *= 2) {
    Floats next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = first_halves(rows[i], rows[i + kLanes / 2]);
      next[2 * i + 1] = second_halves(rows[i], rows[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

}  // namespace resshift::cpu::RSF_ISA

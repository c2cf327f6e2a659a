// Vector quantization on the CPU, for a part of the blocks of kPixels pixels that every image is divided into.
#pragma once

#include "../../common/vector_quantize.h"
#include "../isa.h"

namespace resshift::cpu {

constexpr std::int64_t kPixels = 64;

RSF_INLINE std::int64_t blocks_each(const VectorQuantize& call) { return (call.pixels + kPixels - 1) / kPixels; }

RSF_INLINE std::int64_t blocks(const VectorQuantize& call) { return call.batch * blocks_each(call); }

// What one thread works in.
RSF_INLINE std::int64_t scratch_numbers(const VectorQuantize& call) { return call.channels * kPixels; }

// The codebook is float32 [N, C], whatever the call's own.
RSF_FOR_EVERY_ISA(void vector_quantize(const VectorQuantize& call, const float* codebook, float* scratch,
                                       std::int64_t begin, std::int64_t end);)

}  // namespace resshift::cpu

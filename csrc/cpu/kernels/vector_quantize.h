// Vector quantization of some of the blocks of kPixels pixels that images are divided into.
#pragma once

#include "../../common/integers.h"
#include "../isa.h"
#include "../vector_quantize.h"

namespace resshift::cpu {

constexpr std::int64_t kPixels = 64;

RSF_INLINE std::int64_t blocks_each(const VectorQuantize& call) { return divide_up(call.pixels, kPixels); }

RSF_INLINE std::int64_t blocks(const VectorQuantize& call) { return call.batch * blocks_each(call); }

// Floats of a thread's scratch memory.
RSF_INLINE std::int64_t scratch_size(const VectorQuantize& call) { return call.channels * kPixels; }

// The codebook is float32 [N, C], a copy unless the call's own is.
RSF_FOR_EVERY_ISA(void vector_quantize(const VectorQuantize& call, const float* codebook, float* scratch,
                                       std::int64_t begin, std::int64_t end);)

}  // namespace resshift::cpu

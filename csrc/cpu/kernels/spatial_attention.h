// Stages of attention between all pixels, each for some pixels of a call, by the online softmax of FlashAttention
// (arXiv 2205.14135): blocks of queries take the blocks of keys one after another, and their sums are scaled down
// whenever a larger score appears.
#pragma once

#include "../../common/integers.h"
#include "../isa.h"
#include "../spatial_attention.h"

namespace resshift::cpu {

constexpr std::int64_t kQueries = 96, kKeys = 256;  // of a block; their scores and probabilities stay in a core's cache
constexpr std::int64_t kPackedPixels = 32;          // that are packed together

// Floats from one row to the next of queries, results, scores and probabilities. None is a multiple of 2 KiB: rows so
// far apart would compete for the same few lines of a cache.
RSF_INLINE std::int64_t channel_stride(const SpatialAttention& call) { return round_up(call.channels, 32) + 16; }
constexpr std::int64_t kKeyStride = kKeys + 16;

// Floats of the packed keys or values of one image, and of a thread's scratch memory.
RSF_INLINE std::int64_t packed_size(const SpatialAttention& call) {
  return round_up(call.pixels, kPackedPixels) * round_up(call.channels, 32);
}
RSF_INLINE std::int64_t scratch_size(const SpatialAttention& call) {
  return kQueries * (2 * channel_stride(call) + 2 * kKeyStride + 3);
}

RSF_FOR_EVERY_ISA(
    // Pack the keys and values [B, …] of groups [begin, end) of kPackedPixels pixels, counted image by image.
    void pack_pixels(const SpatialAttention& call, std::int64_t begin, std::int64_t end, float* keys, float* values);

    // The results of pixels [begin, end), counted from the first of the batch.
    void spatial_attention(const SpatialAttention& call, const float* keys, const float* values, std::int64_t begin,
                           std::int64_t end, float* scratch);)

}  // namespace resshift::cpu

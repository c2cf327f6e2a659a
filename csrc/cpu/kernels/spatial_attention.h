// Attention with one head between all pixels of channels-last images, for a part of the pixels of a call, by the online
// softmax of FlashAttention (arXiv 2205.14135): queries meet blocks of keys one after another, and what they have
// gathered is scaled down whenever a larger score turns up. ops/spatial_attention.py has the formula.
#pragma once

#include <cstdint>

#include "../../common/scalar.h"
#include "../isa.h"

namespace resshift::cpu {

struct SpatialAttention {
  const void *q, *k, *v;  // [B, pixels, C]
  void* out;              // [B, pixels, C]
  Dtype dtype;
  std::int64_t batch, pixels, channels;
};

constexpr std::int64_t kQueries = 96, kKeys = 256;  // of a block; their scores and probabilities stay in a core's cache
constexpr std::int64_t kPackedPixels = 32;          // that are packed together

RSF_INLINE std::int64_t round_up(std::int64_t number, std::int64_t multiple) {
  return (number + multiple - 1) / multiple * multiple;
}

// Floats from one row to the next of queries, results, scores and probabilities. None is a multiple of 2 KiB: rows that
// lie such distances apart share the same few lines of a cache.
RSF_INLINE std::int64_t channel_stride(const SpatialAttention& call) { return round_up(call.channels, 32) + 16; }
constexpr std::int64_t kKeyStride = kKeys + 16;

// Floats of the packed keys or values of one image, and of the memory that a thread works in.
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

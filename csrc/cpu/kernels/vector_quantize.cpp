// Distance, argmin and gather; no distance matrix exists.
//
// Distances are sums of (z − e)² in float32: unlike |e|² − 2 z·e they do not cancel, so that near-ties are decided as
// in exact arithmetic. Lanes are pixels. A first pass finds each pixel's least distance and the group of entries that
// has it, which takes fewer operations than to find the entry; a second pass finds the entry in that group. Only a
// strictly smaller distance replaces another: ties keep the lowest index, and NaN index 0.

#include "vector_quantize.h"

#include "simd.h"

namespace resshift::cpu::RSF_ISA {
namespace {

constexpr int kVectors = kRegisters / 8;
constexpr int kTile = 2;  // entries whose distances are computed at once
constexpr int kGroup = 16;

// Lower least[v] to the distances of COUNT entries from pixels v; z [C, kPixels]. CHANNELS is 0 where only the call
// knows their number.
template <int CHANNELS, int COUNT>
RSF_INLINE void consider(Floats (&least)[kVectors], const float* z, const float* entry, std::int64_t channels) {
  Floats sums[COUNT][kVectors] = {};
  const std::int64_t count = CHANNELS ? CHANNELS : channels;
#pragma GCC unroll 4
  for (std::int64_t c = 0; c < count; ++c) {
    Floats values[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) values[v] = load(z + c * kPixels + v * kLanes);
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) {
      const Floats component = broadcast(entry[i * count + c]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const Floats difference = values[v] - component;
        sums[i][v] = difference * difference + sums[i][v];
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < COUNT; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) least[v] = minimum(sums[i][v], least[v]);
  }
}

// The group of the entry nearest to each pixel, for kVectors vectors of pixels.
template <int CHANNELS>
void find_groups(std::int32_t* groups, const VectorQuantize& call, const float* codebook, const float* z) {
  const Floats infinity = broadcast(__builtin_inff());
  const std::int64_t channels = CHANNELS ? CHANNELS : call.channels;
  Floats distances[kVectors];
  Ints found[kVectors] = {};
  for (int v = 0; v < kVectors; ++v) distances[v] = infinity;
  for (std::int64_t first = 0; first < call.entries; first += kGroup) {
    const std::int64_t end = first + kGroup < call.entries ? first + kGroup : call.entries;
    Floats least[kVectors];
    for (int v = 0; v < kVectors; ++v) least[v] = distances[v];
    std::int64_t entry = first;
    for (; entry + kTile <= end; entry += kTile) {
      consider<CHANNELS, kTile>(least, z, codebook + entry * channels, channels);
    }
    for (; entry < end; ++entry) consider<CHANNELS, 1>(least, z, codebook + entry * channels, channels);
    const Ints group = static_cast<std::int32_t>(first / kGroup) - Ints{};
    for (int v = 0; v < kVectors; ++v) {
      found[v] = least[v] < distances[v] ? group : found[v];
      distances[v] = least[v];
    }
  }
  for (int v = 0; v < kVectors; ++v) std::memcpy(groups + v * kLanes, &found[v], sizeof(Ints));
}

// The entry of a group that is nearest to one pixel, z [C] with stride kPixels; 0 if all distances are NaN.
std::int64_t find_entry(std::int64_t group, const VectorQuantize& call, const float* codebook, const float* z) {
  const std::int64_t first = group * kGroup, end = first + kGroup < call.entries ? first + kGroup : call.entries;
  float least = __builtin_inff();
  std::int64_t found = 0;
  for (std::int64_t entry = first; entry < end; ++entry) {
    float sum = 0.0f;
    for (std::int64_t c = 0; c < call.channels; ++c) {
      const float difference = z[c * kPixels] - codebook[entry * call.channels + c];
      sum += difference * difference;
    }
    found = sum < least ? entry : found;
    least = sum < least ? sum : least;
  }
  return found;
}

template <int CHANNELS>
void quantize_block(const VectorQuantize& call, const float* codebook, float* z, std::int64_t image,
                    std::int64_t first) {
  const std::int64_t count = call.pixels - first < kPixels ? call.pixels - first : kPixels;
  for (std::int64_t c = 0; c < call.channels; ++c) {
    for (std::int64_t i = 0; i < kPixels; ++i) {
      z[c * kPixels + i] = i < count ? load(call.z, image, c, first + i) : 0.0f;
    }
  }
  std::int32_t groups[kPixels];
  for (std::int64_t i = 0; i < count; i += kVectors * kLanes) {
    find_groups<CHANNELS>(groups + i, call, codebook, z + i);
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t entry = find_entry(groups[i], call, codebook, z + i);
    call.indices[image * call.pixels + first + i] = entry;
    for (std::int64_t c = 0; c < call.channels; ++c) {
      const std::int64_t place = (image * call.channels + c) * call.pixels + first + i;
      resshift::store(call.quantized, call.z.dtype, place, codebook[entry * call.channels + c]);
    }
  }
}

}  // namespace

void vector_quantize(const VectorQuantize& call, const float* codebook, float* scratch, std::int64_t begin,
                     std::int64_t end) {
  for (std::int64_t block = begin; block < end; ++block) {
    const std::int64_t image = block / blocks_each(call), first = block % blocks_each(call) * kPixels;
    // 3 and 8 are those of the published codebooks.
    if (call.channels == 3) {
      quantize_block<3>(call, codebook, scratch, image, first);
    } else if (call.channels == 8) {
      quantize_block<8>(call, codebook, scratch, image, first);
    } else {
      quantize_block<0>(call, codebook, scratch, image, first);
    }
  }
}

}  // namespace resshift::cpu::RSF_ISA

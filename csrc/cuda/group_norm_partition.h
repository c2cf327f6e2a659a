// What the kernels of group_norm share: how images are divided, and what a thread works on.
//
// A block takes a chunk of whole groups of one image, and a part of its pixels. A thread keeps to one unit of the chunk
// and iterates over the pixels, so that what depends on the channel stays in registers. A unit is one channel, or in
// channels-last the neighbouring channels of one 16-byte word. In NCHW a chunk is one group; in channels-last it is as
// many as make its part of a row a multiple of 16 bytes, whatever the channels of a group are. Where nothing is
// aligned, words are single elements.
#pragma once

#include "device.h"
#include "group_norm.h"

namespace resshift::cuda::partitioning {

constexpr int kMaxThreads = 512, kSplitThreads = 256;  // of a block that takes whole images, and parts of them
constexpr int kStatisticsFloats = 3;                   // of a group, in shared memory

// What a thread loads and stores at once: WIDTH elements of T, of as many channels or of as many pixels of one channel.
template <class T, int WIDTH, bool ACROSS_CHANNELS>
struct Word {
  using Element = T;
  static constexpr int kWidth = WIDTH;
  static constexpr int kChannels = ACROSS_CHANNELS ? WIDTH : 1;
};

struct Partition {
  std::int64_t channels, pixels;                              // of an image
  std::int64_t unit_stride, position_stride, channel_stride;  // in elements; a position is that of a word
  std::int64_t positions, part_positions;                     // of an image and of a part
  int num_groups, group_channels;
  int groups, chunks, parts;  // groups of a chunk, chunks and parts of an image
  int width, unit_channels;   // of a word; 1 and 1, WIDTH and 1, or WIDTH and WIDTH
  int units, tile_units;      // of the chunk, and of those that a block works on at a time: all of several groups
  int lanes;                  // threads of a unit
  int threads;
  bool channels_last;
  float full_part_elements, last_part_elements, group_elements;  // of a group in a part and in all
  int cache_bytes;                                               // for all of a block's words in shared memory, or 0

  RSF_INLINE float part_elements(int part) const { return part == parts - 1 ? last_part_elements : full_part_elements; }
  RSF_INLINE int slots() const { return groups > 1 ? unit_channels : 1; }  // of a thread, for the moments of groups

  // Floats of shared memory.
  RSF_INLINE int cache_floats() const { return cache_bytes / static_cast<int>(sizeof(float)); }
  RSF_INLINE int moments_floats() const { return (2 * slots() + 1) * threads; }
  RSF_INLINE int affine_floats() const { return 2 * tile_units * unit_channels; }
  RSF_INLINE int sums_floats() const { return 2 * unit_channels * threads; }

  // Bytes of shared memory of the kernels that normalize: of one that reads images whole, and of one that reads parts.
  std::size_t single_bytes() const { return apply_bytes() + sizeof(float) * (cache_floats() + moments_floats()); }
  std::size_t apply_bytes() const { return sizeof(float) * (affine_floats() + kStatisticsFloats * groups); }
};

// What the running thread works on.
struct Place {
  std::int64_t image;
  int part, chunk;
  int unit, lane;  // unit of a tile
  bool works;      // false for threads that only fill the last warp

  RSF_DEVICE explicit Place(const Partition& partition) {
    const int block = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
    chunk = block % partition.chunks;
    part = block / partition.chunks % partition.parts;
    image = block / partition.chunks / partition.parts;
    unit = partition.channels_last ? thread % partition.tile_units : thread / partition.lanes;
    lane = partition.channels_last ? thread / partition.tile_units : thread % partition.lanes;
    works = thread < partition.tile_units * partition.lanes;
  }
};

RSF_DEVICE int warp_index() { return static_cast<int>(threadIdx.x) / kWarpSize; }
RSF_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % kWarpSize; }

// Call `body(offset, load(offset))` for each of the thread's words in the tile that begins with unit `tile`. BATCH
// words are loaded before the first of them is used, so that their latencies overlap.
template <int BATCH, class Load, class Body>
RSF_DEVICE void for_each_word(const Partition& partition, const Place& place, int tile, const Load& load,
                              const Body& body) {
  const int unit = tile + place.unit;
  if (!place.works || unit >= partition.units) return;
  const std::int64_t first = place.part * partition.part_positions, left = partition.positions - first;
  const int count = static_cast<int>(left < partition.part_positions ? left : partition.part_positions);
  const std::int64_t step = partition.lanes * partition.position_stride;
  std::int64_t offset = place.image * partition.channels * partition.pixels +
                        (first + place.lane) * partition.position_stride +
                        (static_cast<std::int64_t>(place.chunk) * partition.units + unit) * partition.unit_stride;
#pragma unroll 1
  for (int i = place.lane; i < count; i += BATCH * partition.lanes, offset += BATCH * step) {
    decltype(load(offset)) words[BATCH] = {};
#pragma unroll
    for (int k = 0; k < BATCH; ++k) {
      if (i + k * partition.lanes < count) words[k] = load(offset + k * step);
    }
#pragma unroll
    for (int k = 0; k < BATCH; ++k) {
      if (i + k * partition.lanes < count) body(offset + k * step, words[k]);
    }
  }
}

// Write gain and offset of a tile's channels, for norm · gain + offset, to shared memory; called by all threads.
RSF_DEVICE void load_affine(const Affine& affine, const Partition& partition, const Place& place, int tile, float* gain,
                            float* offset) {
  const int left = partition.units - tile,
            count = (left < partition.tile_units ? left : partition.tile_units) * partition.unit_channels;
  const std::int64_t first =
      (static_cast<std::int64_t>(place.chunk) * partition.units + tile) * partition.unit_channels;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < count; i += partition.threads) {
    const float scale = affine.scale.data ? 1.0f + load(affine.scale, place.image, first + i, 0) : 1.0f;
    gain[i] = load(affine.weight, 0, first + i, 0) * scale;
    offset[i] = load(affine.bias, 0, first + i, 0) * scale +
                (affine.shift.data ? load(affine.shift, place.image, first + i, 0) : 0.0f);
  }
}

// Iterates over the channels of a unit and knows the group of each; a chunk of several groups is one tile.
struct GroupOfChannel {
  int group = 0, channel = 0, group_channels;

  RSF_DEVICE GroupOfChannel(const Partition& partition, int first_channel) : group_channels(partition.group_channels) {
    if (partition.groups == 1) return;
    group = first_channel / group_channels;
    channel = first_channel % group_channels;
  }
  RSF_DEVICE void advance(const Partition& partition) {
    if (partition.groups == 1 || ++channel < group_channels) return;
    channel = 0;
    ++group;
  }
};

}  // namespace resshift::cuda::partitioning

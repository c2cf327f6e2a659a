// From a block's tile of a matrix product in shared memory to the result: bias, residual, and the statistics of the
// group normalization after it.
//
// A part is the rows of one tile, all of one image; the channels of the image are divided into tiles of `width`. Each
// block writes count, mean and squared deviations of every group that it has channels of: an entry. A group that begins
// in one tile and ends in another has several entries of a part, its slots. The last block of an image, known by an
// integer counter, combines the entries in a fixed order. kernels/norm_stats.py does the same in Triton.
#pragma once

#include "../common/result.h"
#include "moments.h"

namespace resshift::cuda {

// Where a block's tile is in the image that it is a part of.
struct TilePlace {
  std::int64_t image;
  int part, parts;
  int tile, tiles, width;  // of channels
  int slots;               // of a group, if statistics are wanted
};

// Floats of a row of a tile in shared memory; rows that a warp writes at once begin in different banks.
RSF_INLINE constexpr int tile_pitch(int width) { return width + 8; }

// How a group's channels lie in the tiles of an image.
struct GroupSpan {
  int first, end;  // channels

  RSF_INLINE GroupSpan(int group, int group_channels) : first(group * group_channels), end(first + group_channels) {}
  RSF_INLINE int slots(int width) const { return (end - 1) / width - first / width + 1; }
};

// Most slots of a group.
RSF_INLINE int count_slots(int channels, int groups, int width) {
  int slots = 1;
  for (int g = 0; g < groups; ++g) {
    const int own = GroupSpan(g, channels / groups).slots(width);
    slots = own > slots ? own : slots;
  }
  return slots;
}

// Entries [images, groups, slots, parts, 4]: count, mean, squared deviations and padding. In this order a group's are
// neighbours.
constexpr int kEntryFloats = 4;

inline std::int64_t statistics_scratch(const NextNorm& norm, int channels, std::int64_t images, std::int64_t parts,
                                       int width) {
  if (!norm.groups) return 0;
  return images * norm.groups * count_slots(channels, norm.groups, width) * parts * kEntryFloats;
}

// WIDTH elements of float32 or of T, by 16 bytes.
template <class T, int WIDTH>
RSF_DEVICE void load_floats(float (&values)[WIDTH], const void* from, Dtype dtype, std::int64_t index) {
  if (dtype == Dtype::kFloat32) {
#pragma unroll
    for (int i = 0; i < WIDTH; i += 4) {
      const auto piece = load_vector<4>(static_cast<const float*>(from) + index + i);
#pragma unroll
      for (int j = 0; j < 4; ++j) values[i + j] = piece[j];
    }
  } else if constexpr (sizeof(T) == 2) {
    const auto piece = load_vector<WIDTH>(static_cast<const T*>(from) + index);
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) values[j] = to_float(piece[j]);
  }
}

template <class T>
RSF_DEVICE float load_float(const void* from, Dtype dtype, std::int64_t index) {
  return dtype == Dtype::kFloat32 ? static_cast<const float*>(from)[index]
                                  : to_float(static_cast<const T*>(from)[index]);
}

// Write `rows` rows of a tile [rows, tile_pitch] to the result, whose pixel of a row `pixel_of` gives; called by the
// whole block, after a barrier. With `keep` the tile gets the values as they are stored.
template <class T, class PixelOf>
RSF_DEVICE void store_tile(const Result& result, float* tile, const TilePlace& place, unsigned rows, bool keep,
                           const PixelOf& pixel_of) {
  constexpr int kWidth = 16 / sizeof(T);
  const int pitch = tile_pitch(place.width), first = place.tile * place.width;
  const unsigned words = static_cast<unsigned>(place.width) / kWidth;
  const bool whole = result.channels % kWidth == 0;
  T* const y = static_cast<T*>(result.y);
#pragma unroll 2
  for (unsigned i = threadIdx.x; i < rows * words; i += blockDim.x) {
    const unsigned row = i / words;
    const int own = static_cast<int>(i % words) * kWidth, channel = first + own;
    if (channel >= result.channels) continue;
    float* const values = tile + row * static_cast<unsigned>(pitch) + own;
    const std::int64_t offset = pixel_of(row) * result.channels + channel;
    if (!whole) {
      for (int j = 0; j < kWidth && channel + j < result.channels; ++j) {
        float value = values[j];
        if (result.bias) value += load_float<T>(result.bias, result.bias_dtype, channel + j);
        if (result.residual) value += load_float<T>(result.residual, result.residual_dtype, offset + j);
        y[offset + j] = from_float<T>(value);
        values[j] = to_float(y[offset + j]);
      }
      continue;
    }
    float sums[kWidth], added[kWidth];
    load_floats<float>(sums, values, Dtype::kFloat32, 0);
    if (result.bias) {
      load_floats<T>(added, result.bias, result.bias_dtype, channel);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sums[j] += added[j];
    }
    if (result.residual) {
      load_floats<T>(added, result.residual, result.residual_dtype, offset);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sums[j] += added[j];
    }
    Vector<T, kWidth> word;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) word[j] = from_float<T>(sums[j]);
    store_vector(y + offset, word);
    if (!keep) continue;
#pragma unroll
    for (int j = 0; j < kWidth; j += 4) {
      store_vector(values + j, Vector<float, 4>{{to_float(word[j]), to_float(word[j + 1]), to_float(word[j + 2]),
                                                 to_float(word[j + 3])}});
    }
  }
}

// Iterates over the elements of some columns of a tile, relative to the first one; each lane of a warp takes some.
class TileElements {
 public:
  RSF_DEVICE TileElements(const float* tile, int pitch, int columns, int rows)
      : tile_(tile), pitch_(pitch), columns_(columns), rows_(rows) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    row_ = lane / columns;
    column_ = lane % columns;
  }

  RSF_DEVICE bool more() const { return row_ < rows_; }

  RSF_DEVICE void advance() {
    column_ += kWarpSize % columns_;
    row_ += kWarpSize / columns_;
    if (column_ < columns_) return;
    column_ -= columns_;
    ++row_;
  }

  RSF_DEVICE Moments get() const {
    Moments result;
    result.count = 1.0f;
    result.mean = tile_[row_ * pitch_ + column_] - tile_[0];
    return result;
  }

 private:
  const float* tile_;
  int pitch_, columns_, rows_, row_, column_;
};

// A group's entries of one image.
RSF_DEVICE float* entries_of(const NextNorm& norm, const TilePlace& place, int group) {
  return norm.entries + (place.image * norm.groups + group) * place.slots * place.parts * kEntryFloats;
}

// Write the entries of a tile whose values are as they were stored; called by the whole block, after a barrier.
RSF_DEVICE void store_entries(const NextNorm& norm, const Result& result, const float* tile, const TilePlace& place,
                              int rows) {
  const int group_channels = result.channels / norm.groups, first = place.tile * place.width;
  const int end = min(first + place.width, result.channels), warps = static_cast<int>(blockDim.x) / kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize, lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int group = first / group_channels + warp; group * group_channels < end; group += warps) {
    const GroupSpan span(group, group_channels);
    const int left = max(span.first, first), columns = min(span.end, end) - left;
    const float* const corner = tile + left - first;
    const auto count = static_cast<float>(rows * columns);
    const Moments all = combine(TileElements(corner, tile_pitch(place.width), columns, rows), count);
    if (lane > 0) continue;
    const int slot = place.tile - span.first / place.width;
    float* const entry =
        entries_of(norm, place, group) + (slot * place.parts + place.part) * std::int64_t{kEntryFloats};
    store_vector(entry, Vector<float, kEntryFloats>{{count, corner[0] + all.mean, all.squares, 0.0f}});
  }
}

// The moments that a lane combines of a group's entries; several loads are in flight at a time.
template <int LANES>
RSF_DEVICE Moments combine_entries(const float* entries, int count) {
  constexpr int kBatch = 8;
  Moments all;
  for (int first = static_cast<int>(threadIdx.x) % LANES; first < count; first += kBatch * LANES) {
    Vector<float, kEntryFloats> loaded[kBatch] = {};
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (first + i * LANES < count) loaded[i] = load_fresh(entries + (first + i * LANES) * std::int64_t{kEntryFloats});
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      Moments part;
      part.count = loaded[i][0];
      part.mean = loaded[i][1];
      part.squares = loaded[i][2];
      add(all, part);
    }
  }
  return all;
}

// Combine the entries of an image in its last block; the others return at once. Called by the whole block.
RSF_DEVICE void finish_statistics(const NextNorm& norm, const Result& result, const TilePlace& place) {
  constexpr int kLanes = 8, kGroups = kWarpSize / kLanes;  // of a warp at a time
  RSF_SHARED(int, earlier, 1);
  __threadfence();
  __syncthreads();  // all threads have written their entries before one of them counts the block
  if (threadIdx.x == 0) earlier[0] = atomicAdd(norm.counters + place.image, 1);
  __syncthreads();
  if (earlier[0] != place.parts * place.tiles - 1) return;
  __threadfence();
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize, lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  for (int first = warp * kGroups; first < norm.groups; first += warps * kGroups) {
    const int group = first + lane / kLanes;
    const bool exists = group < norm.groups;
    const GroupSpan span(group, result.channels / norm.groups);
    const int count = exists ? span.slots(place.width) * place.parts : 0;
    const float* const entries = entries_of(norm, place, exists ? group : 0);
    const Moments all = combine_lanes<kLanes>(combine_entries<kLanes>(entries, count));
    if (!exists || lane % kLanes > 0) continue;
    float* const statistics = norm.statistics + place.image * 2 * norm.groups + group;
    statistics[0] = all.mean;
    statistics[norm.groups] = rsqrtf((all.squares < 0.0f ? 0.0f : all.variance()) + norm.eps);  // NaN stays
  }
  if (threadIdx.x == 0) norm.counters[place.image] = 0;
}

// All of the above, for a tile [rows, tile_pitch] that the block has written to shared memory.
template <class T, class PixelOf>
RSF_DEVICE void finish_tile(const Result& result, const NextNorm& norm, float* tile, const TilePlace& place, int rows,
                            const PixelOf& pixel_of) {
  __syncthreads();
  store_tile<T>(result, tile, place, static_cast<unsigned>(rows), norm.groups > 0, pixel_of);
  if (!norm.groups) return;
  __syncthreads();
  store_entries(norm, result, tile, place, rows);
  finish_statistics(norm, result, place);
}

}  // namespace resshift::cuda

// vector_quantize: distance, argmin and gather in one launch; no distance matrix exists.
//
// Distances are sums of (z − e)² in float32 at any width: unlike |e|² − 2 z·e they do not cancel, so that near-ties are
// decided as in exact arithmetic. For each of its pixels a thread keeps the least distance and its entry, and replaces
// them only by a strictly smaller distance: ties keep the lowest index, and NaN index 0.
//
// For the widths of the published codebooks, a block takes a few pixels, whose vectors every thread holds in registers,
// and its threads divide the codebook: a block reads each entry once, by 16 bytes, for all of its pixels, so that
// shared memory would save nothing. Any other width goes through shared memory in tiles, as in a matrix product: a warp
// has four pixels and all entries of a tile, and each value that it loads serves four distances. The next tile is
// loaded into registers while one is worked on.

#include "vector_quantize.h"

#include "device.h"

namespace resshift::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;

// A distance and an entry as one integer that is ordered by distance, then by entry: floats that are not negative are
// ordered as their bits.
RSF_DEVICE std::uint64_t key_of(float distance, std::uint32_t entry) {
  return static_cast<std::uint64_t>(bit_cast<std::uint32_t>(distance)) << 32 | entry;
}

RSF_DEVICE std::uint32_t entry_of(std::uint64_t key) { return static_cast<std::uint32_t>(key); }

RSF_DEVICE std::uint64_t least(std::uint64_t a, std::uint64_t b) { return a < b ? a : b; }

// The nearest entry so far of each of a thread's pixels.
template <int PIXELS>
struct Nearest {
  float distance[PIXELS];
  std::uint32_t entry[PIXELS];

  RSF_DEVICE Nearest() {
#pragma unroll
    for (int p = 0; p < PIXELS; ++p) {
      distance[p] = INFINITY;
      entry[p] = 0;
    }
  }

  RSF_DEVICE void consider(int pixel, float candidate, std::uint32_t index) {
    if (candidate < distance[pixel]) {
      distance[pixel] = candidate;
      entry[pixel] = index;
    }
  }

  // The warp's least key of pixel lane / (32 / PIXELS).
  RSF_DEVICE std::uint64_t least_of_warp() const {
    std::uint64_t keys[PIXELS];
#pragma unroll
    for (int p = 0; p < PIXELS; ++p) keys[p] = key_of(distance[p], entry[p]);
    exchange<kWarpSize / 2>(keys);
    return keys[0];
  }

 private:
  // Two lanes OFFSET apart exchange keys so that each is left with half of its pixels, until every lane has one.
  template <int OFFSET>
  RSF_DEVICE static void exchange(std::uint64_t (&keys)[PIXELS]) {
    constexpr int kKept = PIXELS * OFFSET / kWarpSize;
    const bool upper = threadIdx.x & OFFSET;
    if constexpr (kKept == 0) keys[0] = least(keys[0], __shfl_xor_sync(kAllLanes, keys[0], OFFSET));
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      const std::uint64_t handed = upper ? keys[i] : keys[i + kKept], own = upper ? keys[i + kKept] : keys[i];
      keys[i] = least(own, __shfl_xor_sync(kAllLanes, handed, OFFSET));
    }
    if constexpr (OFFSET > 1) exchange<OFFSET / 2>(keys);
  }
};

// The image and the first pixel of a block of PIXELS, all in one image.
template <int PIXELS>
struct Share {
  std::int64_t image, first;

  RSF_DEVICE explicit Share(const VectorQuantize& call) {
    const auto blocks = static_cast<std::uint32_t>(divide_up(call.pixels, PIXELS));
    image = blockIdx.x / blocks;
    first = static_cast<std::int64_t>(blockIdx.x % blocks) * PIXELS;
  }

  // Pixels past the end repeat the last one; their results are not written.
  RSF_DEVICE float load_z(const VectorQuantize& call, std::int64_t channel, int pixel) const {
    const std::int64_t last = call.pixels - 1, at = first + pixel;
    return load(call.z, image, channel, at < last ? at : last);
  }

  // Write the chosen entries [PIXELS] and their vectors; called by the whole block.
  template <class E>
  RSF_DEVICE void store(const VectorQuantize& call, const std::uint32_t* chosen) const {
    const int pixel = static_cast<int>(threadIdx.x) % PIXELS;
    const std::int64_t at = first + pixel;
    if (at >= call.pixels) return;
    const E* entry = static_cast<const E*>(call.codebook) + chosen[pixel] * call.channels;
    if (threadIdx.x < PIXELS) call.indices[image * call.pixels + at] = chosen[pixel];
    for (std::int64_t c = threadIdx.x / PIXELS; c < call.channels; c += kThreads / PIXELS) {
      const std::int64_t out = (image * call.channels + c) * call.pixels + at;
      resshift::store(call.quantized, call.z.dtype, out, to_float(entry[c]));
    }
  }
};

// COUNT elements of a codebook of `size` elements, by 16 bytes where it is aligned. Past its end they are NaN, which is
// never nearer than another entry.
template <int COUNT, class E>
RSF_DEVICE void load_entries(float (&elements)[COUNT], const E* codebook, std::int64_t first, std::int64_t size,
                             bool aligned) {
  constexpr int kWidth = 16 / sizeof(E);
  static_assert(COUNT % kWidth == 0, "entries are loaded in pieces of 16 bytes");
  if (aligned && first + COUNT <= size) {
#pragma unroll
    for (int i = 0; i < COUNT; i += kWidth) {
      const auto piece = load_vector<kWidth>(codebook + first + i);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) elements[i + j] = to_float(piece[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) elements[i] = first + i < size ? to_float(codebook[first + i]) : nanf("");
  }
}

template <int C>
constexpr int kNarrowPixels = C == 3 ? 16 : 8;

template <class E, int C>
__global__ void __launch_bounds__(kThreads) narrow_kernel(const __grid_constant__ VectorQuantize call) {
  constexpr int kPixels = kNarrowPixels<C>, kLanes = kWarpSize / kPixels, kBytes = C * sizeof(E);
  constexpr int kEntries = kBytes % 16 == 0  ? 1
                           : kBytes % 8 == 0 ? 2
                           : kBytes % 4 == 0 ? 4
                                             : 8;  // whole pieces of 16 bytes
  const Share<kPixels> share(call);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarpSize, lane = thread % kWarpSize;
  RSF_SHARED(float, z_tile, C* kPixels);
  RSF_SHARED(std::uint64_t, keys, kWarps* kPixels);
  RSF_SHARED(std::uint32_t, chosen, kPixels);
  if (thread < C * kPixels) z_tile[thread] = share.load_z(call, thread / kPixels, thread % kPixels);
  __syncthreads();
  float z[C * kPixels];
#pragma unroll
  for (int i = 0; i < C * kPixels; ++i) z[i] = z_tile[i];

  const E* codebook = static_cast<const E*>(call.codebook);
  const bool aligned = is_aligned(codebook);
  const auto entries = static_cast<std::uint32_t>(call.entries);
  Nearest<kPixels> nearest;
  for (std::uint32_t first = threadIdx.x * kEntries; first < entries; first += kThreads * kEntries) {
    float e[kEntries * C];
    load_entries(e, codebook, std::int64_t{first} * C, call.entries * C, aligned);
#pragma unroll
    for (int j = 0; j < kEntries; ++j) {
#pragma unroll
      for (int p = 0; p < kPixels; ++p) {
        float distance = 0.0f;
#pragma unroll
        for (int c = 0; c < C; ++c) {
          const float difference = z[c * kPixels + p] - e[j * C + c];
          distance += difference * difference;
        }
        nearest.consider(p, distance, first + j);
      }
    }
  }

  const std::uint64_t key = nearest.least_of_warp();
  if (lane % kLanes == 0) keys[warp * kPixels + lane / kLanes] = key;
  __syncthreads();
  if (thread < kPixels) {
    std::uint64_t best = keys[thread];
    for (int w = 1; w < kWarps; ++w) best = least(best, keys[w * kPixels + thread]);
    chosen[thread] = entry_of(best);
  }
  __syncthreads();
  share.template store<E>(call, chosen);
}

constexpr int kWidePixels = 32, kPixelsOfWarp = kWidePixels / kWarps;  // 4
constexpr int kTile = 128, kEntriesOfLane = kTile / kWarpSize;         // 4
constexpr int kChunk = 16;                                             // channels
constexpr int kWideBlocks = 2;   // on a multiprocessor; for more, registers spill on some architectures
constexpr int kRow = kTile + 4;  // of a tile [kChunk, kTile]; padded, so that fewer lanes store to one bank

// What a thread loads of a tile of entries and of the block's pixels, for one chunk of channels.
template <class E>
struct Stage {
  static constexpr int kWidth = 16 / sizeof(E), kPieces = kTile * kChunk / (kWidth * kThreads);
  static constexpr int kOfEntry = kChunk / kWidth, kZ = kWidePixels * kChunk / kThreads;
  Vector<E, kWidth> e[kPieces];
  float z[kZ];

  // Channels past the end are 0 and add nothing; entries past the end are NaN and never the nearest.
  RSF_DEVICE void load(const VectorQuantize& call, const Share<kWidePixels>& share, std::int64_t tile,
                       std::int64_t chunk, bool aligned) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int piece = i * kThreads + static_cast<int>(threadIdx.x);
      const std::int64_t entry = tile * kTile + piece / kOfEntry, c = chunk * kChunk + piece % kOfEntry * kWidth;
      const E* address = static_cast<const E*>(call.codebook) + entry * call.channels + c;
      if (aligned && entry < call.entries && c < call.channels) {
        e[i] = load_vector<kWidth>(address);
      } else {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          const float missing = entry < call.entries ? 0.0f : nanf("");
          e[i][j] = entry < call.entries && c + j < call.channels ? address[j] : from_float<E>(missing);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kZ; ++i) {
      const std::int64_t c = chunk * kChunk + threadIdx.x / kWidePixels + i * (kThreads / kWidePixels);
      z[i] = c < call.channels ? share.load_z(call, c, static_cast<int>(threadIdx.x) % kWidePixels) : 0.0f;
    }
  }

  // Into e_tile [kChunk, kRow] and z_tile [kChunk, kWidePixels].
  RSF_DEVICE void store(float* e_tile, float* z_tile) const {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int piece = i * kThreads + static_cast<int>(threadIdx.x);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        e_tile[(piece % kOfEntry * kWidth + j) * kRow + piece / kOfEntry] = to_float(e[i][j]);
      }
    }
#pragma unroll
    for (int i = 0; i < kZ; ++i) z_tile[i * kThreads + threadIdx.x] = z[i];
  }
};

// Add the chunk's channels to the distances of a warp's pixels from a lane's entries.
RSF_DEVICE void add_chunk(float (&distance)[kPixelsOfWarp][kEntriesOfLane], const float* e_tile, const float* z_tile) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize, lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int k = 0; k < kChunk; ++k) {
    const auto e = load_vector<kEntriesOfLane>(e_tile + k * kRow + lane * kEntriesOfLane);
    const auto z = load_vector<kPixelsOfWarp>(z_tile + k * kWidePixels + warp * kPixelsOfWarp);
#pragma unroll
    for (int p = 0; p < kPixelsOfWarp; ++p) {
#pragma unroll
      for (int j = 0; j < kEntriesOfLane; ++j) {
        const float difference = z[p] - e[j];
        distance[p][j] += difference * difference;
      }
    }
  }
}

template <class E>
__global__ void __launch_bounds__(kThreads, kWideBlocks) wide_kernel(const __grid_constant__ VectorQuantize call) {
  constexpr int kLanes = kWarpSize / kPixelsOfWarp, kTileSize = kChunk * kRow, kZSize = kChunk * kWidePixels;
  const Share<kWidePixels> share(call);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize, lane = static_cast<int>(threadIdx.x) % kWarpSize;
  RSF_SHARED(float, e_tiles, 2 * kTileSize);
  RSF_SHARED(float, z_tiles, 2 * kZSize);
  RSF_SHARED(std::uint32_t, chosen, kWidePixels);
  const std::int64_t chunks = divide_up(call.channels, kChunk), tiles = divide_up(call.entries, kTile);
  const bool aligned = is_aligned(call.codebook) && call.channels % Stage<E>::kWidth == 0;
  Nearest<kPixelsOfWarp> nearest;
  Stage<E> stage;
  stage.load(call, share, 0, 0, aligned);
  int buffer = 0;
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    float distance[kPixelsOfWarp][kEntriesOfLane] = {};
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      // With two buffers one barrier is enough: when a buffer is written again, all threads have passed the barrier
      // that follows its last use.
      stage.store(e_tiles + buffer * kTileSize, z_tiles + buffer * kZSize);
      __syncthreads();
      const bool ends = chunk + 1 == chunks;
      if (!ends || tile + 1 < tiles) stage.load(call, share, tile + ends, ends ? 0 : chunk + 1, aligned);
      add_chunk(distance, e_tiles + buffer * kTileSize, z_tiles + buffer * kZSize);
      buffer ^= 1;
    }
    const auto first = static_cast<std::uint32_t>(tile * kTile + lane * kEntriesOfLane);
#pragma unroll
    for (int p = 0; p < kPixelsOfWarp; ++p) {
#pragma unroll
      for (int j = 0; j < kEntriesOfLane; ++j) nearest.consider(p, distance[p][j], first + j);
    }
  }
  const std::uint64_t key = nearest.least_of_warp();
  if (lane % kLanes == 0) chosen[warp * kPixelsOfWarp + lane / kLanes] = entry_of(key);
  __syncthreads();
  share.template store<E>(call, chosen);
}

template <class Kernel>
int start(Kernel* kernel, const VectorQuantize& call, int pixels_of_block, void* stream) {
  const auto blocks = static_cast<unsigned>(call.batch * divide_up(call.pixels, pixels_of_block));
  return launch(kernel, dim3(blocks), dim3(kThreads), 0, stream, call);
}

}  // namespace

int vector_quantize(const VectorQuantize& call, void* stream) {
  return dispatch(call.codebook_dtype, [&](auto type) {
    using E = typename decltype(type)::type;
    switch (call.channels) {
      case 3:
        return start(narrow_kernel<E, 3>, call, kNarrowPixels<3>, stream);
      case 4:
        return start(narrow_kernel<E, 4>, call, kNarrowPixels<4>, stream);
      case 8:
        return start(narrow_kernel<E, 8>, call, kNarrowPixels<8>, stream);
      default:
        return start(wide_kernel<E>, call, kWidePixels, stream);
    }
  });
}

}  // namespace resshift::cuda

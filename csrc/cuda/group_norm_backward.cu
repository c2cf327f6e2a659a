// The gradient of group_norm.
//
// With z = n · gain + offset of normalized n, gain = weight (1 + scale), and dz the gradient of z, which is dy or
// dy · silu'(z), all gradients follow from two sums over the pixels of each image's channel, Σ dz and Σ dz · n. Three
// launches: parts of those sums; the sums, all gradients but dx, and two means of each group; and dx. n is computed
// from x again, so that nothing but x and its statistics is kept from the forward pass.

#include "../common/activations.h"
#include "device.h"
#include "group_norm.h"
#include "group_norm_plan.h"

namespace resshift::cuda {
namespace {

using namespace partitioning;

constexpr int kThreads = 256;
constexpr int kReduceThreads = 512;

// Scratch memory; one pair is of dz, dz · n.
struct Scratch {
  float* parts;  // [B, C, parts, 2]: sums of each part
  float* sums;   // [B, C]: Σ dz · n; Σ dz is dshift
  float* means;  // [B, G, 2]: means of dz · gain and of dz · gain · n over a group

  RSF_INLINE Scratch(const GroupNormBackward& call, const Partition& partition) {
    const std::int64_t rows = call.images.batch * call.images.channels;
    // The pairs first: they are read as 8 bytes.
    parts = call.scratch;
    means = parts + 2 * rows * partition.parts;
    sums = means + 2 * call.images.batch * call.images.num_groups;
  }

  static std::int64_t floats(const GroupedImages& images, const Partition& partition) {
    return images.batch * images.channels * (2 * partition.parts + 1) + 2 * images.batch * images.num_groups;
  }
};

// A thread's constants of its unit's channels: z = (x − mean) gain + offset, where the gain includes 1 / deviation.
template <int CHANNELS>
struct Line {
  float mean[CHANNELS], rstd[CHANNELS], gain[CHANNELS], offset[CHANNELS];
  std::int64_t group[CHANNELS];

  RSF_DEVICE Line(const GroupNormBackward& call, const Partition& partition, const Place& place,
                  const float* shared_gain, const float* shared_offset) {
    GroupOfChannel of(partition, place.unit * CHANNELS);
#pragma unroll
    for (int j = 0; j < CHANNELS; ++j, of.advance(partition)) {
      group[j] = place.image * partition.num_groups + place.chunk * partition.groups + of.group;
      mean[j] = call.mean[group[j]];
      rstd[j] = call.rstd[group[j]];
      gain[j] = shared_gain[place.unit * CHANNELS + j] * rstd[j];
      offset[j] = shared_offset[place.unit * CHANNELS + j];
    }
  }
};

template <class T, int WIDTH>
struct Pair {
  Vector<T, WIDTH> x, dy;
};

template <class Word>
RSF_DEVICE auto load_pair(const GroupNormBackward& call, std::int64_t offset) {
  using T = typename Word::Element;
  Pair<T, Word::kWidth> pair;
  pair.x = load_vector<Word::kWidth>(static_cast<const T*>(call.x) + offset);
  pair.dy = load_vector<Word::kWidth>(static_cast<const T*>(call.dy) + offset);
  return pair;
}

// x − mean and dz of a word's elements.
template <int WIDTH>
struct Terms {
  float centered[WIDTH], dz[WIDTH];
};

template <class T, int WIDTH, int CHANNELS>
RSF_DEVICE Terms<WIDTH> gradients_of_z(const Line<CHANNELS>& line, const Pair<T, WIDTH>& pair, bool silu) {
  Terms<WIDTH> terms;
#pragma unroll
  for (int j = 0; j < WIDTH; ++j) {
    terms.centered[j] = to_float(pair.x[j]) - line.mean[CHANNELS == 1 ? 0 : j];
    terms.dz[j] = to_float(pair.dy[j]);
  }
  if (silu) {
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) {
      const int i = CHANNELS == 1 ? 0 : j;
      terms.dz[j] *= silu_derivative(terms.centered[j] * line.gain[i] + line.offset[i]);
    }
  }
  return terms;
}

// Sum each channel of a tile over the lanes, to the part's place in scratch memory; called by all warps.
template <class Word>
RSF_DEVICE void store_sums(const Partition& partition, const Place& place, int tile, const float* memory,
                           float* parts) {
  constexpr int kChannels = Word::kChannels;
  const int left = partition.units - tile,
            channels = (left < partition.tile_units ? left : partition.tile_units) * kChannels;
  const std::int64_t first =
      place.image * partition.channels + (static_cast<std::int64_t>(place.chunk) * partition.units + tile) * kChannels;
  const int lane_stride = partition.channels_last ? partition.tile_units : 1;
  for (int channel = warp_index(); channel < channels; channel += partition.threads / kWarpSize) {
    const int unit = channel / kChannels, slot = channel % kChannels;
    const float* own = memory + slot * partition.threads + (partition.channels_last ? unit : unit * partition.lanes);
    float dz = 0.0f, dz_n = 0.0f;
    for (int lane = lane_index(); lane < partition.lanes; lane += kWarpSize) {
      dz += own[lane * lane_stride];
      dz_n += own[kChannels * partition.threads + lane * lane_stride];
    }
    dz = warp_sum(dz);
    dz_n = warp_sum(dz_n);
    if (lane_index() == 0) {
      store_vector(parts + ((first + channel) * partition.parts + place.part) * 2, Vector<float, 2>{{dz, dz_n}});
    }
  }
}

// Σ dz and Σ dz · n of each channel's pixels in a part.
template <class Word>
__global__ void __launch_bounds__(kThreads, 2)
    sums_kernel(const __grid_constant__ GroupNormBackward call, const __grid_constant__ Partition partition) {
  constexpr int kWidth = Word::kWidth, kChannels = Word::kChannels;
  const Place place(partition);
  float* memory = dynamic_shared<float>();
  float* gain = memory + partition.sums_floats();
  float* offset = gain + partition.affine_floats() / 2;
  for (int tile = 0; tile < partition.units; tile += partition.tile_units) {
    load_affine(call.affine, partition, place, tile, gain, offset);
    __syncthreads();
    if (place.works) {
      const Line<kChannels> line(call, partition, place, gain, offset);
      float dz_sum[kWidth] = {}, dz_n_sum[kWidth] = {};
      for_each_word<2>(
          partition, place, tile, [&](std::int64_t from) { return load_pair<Word>(call, from); },
          [&](std::int64_t, const auto& pair) {
            const auto terms = gradients_of_z(line, pair, call.affine.silu);
#pragma unroll
            for (int j = 0; j < kWidth; ++j) {
              dz_sum[j] += terms.dz[j];
              dz_n_sum[j] += terms.dz[j] * terms.centered[j];
            }
          });
#pragma unroll
      for (int j = kChannels; j < kWidth; ++j) {
        dz_sum[0] += dz_sum[j];
        dz_n_sum[0] += dz_n_sum[j];
      }
#pragma unroll
      for (int j = 0; j < kChannels; ++j) {
        memory[j * partition.threads + threadIdx.x] = dz_sum[j];
        memory[(kChannels + j) * partition.threads + threadIdx.x] = dz_n_sum[j] * line.rstd[j];
      }
    }
    __syncthreads();
    store_sums<Word>(partition, place, tile, memory, Scratch(call, partition).parts);
  }
}

// dshift, dscale, dweight, dbias and the means that dx needs; a block takes one group of all images.
__global__ void __launch_bounds__(kReduceThreads, 1)
    reduce_kernel(const __grid_constant__ GroupNormBackward call, const __grid_constant__ Partition partition) {
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * partition.group_channels;
  const int width = partition.group_channels, warps = static_cast<int>(blockDim.x) / kWarpSize;
  const Scratch scratch(call, partition);
  const Affine& affine = call.affine;
  // No more lanes for a row than it has parts: the others take further rows.
  int lanes = 1;
  while (lanes < partition.parts && lanes < kWarpSize) lanes *= 2;
  const int lane = static_cast<int>(threadIdx.x) % lanes, together = kReduceThreads / lanes;
  const std::int64_t rows = call.images.batch * width;
  for (std::int64_t from = 0; from < rows; from += together) {  // every lane takes part in the shuffles
    const std::int64_t i = from + static_cast<int>(threadIdx.x) / lanes;
    const std::int64_t row = i / width * partition.channels + first + i % width;
    float dz = 0.0f, dz_n = 0.0f;
    for (int part = lane; i < rows && part < partition.parts; part += lanes) {
      const auto sums = load_vector<2>(scratch.parts + (row * partition.parts + part) * 2);
      dz += sums[0];
      dz_n += sums[1];
    }
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
      dz += __shfl_xor_sync(kAllLanes, dz, offset);
      dz_n += __shfl_xor_sync(kAllLanes, dz_n, offset);
    }
    if (lane == 0 && i < rows) {
      call.dshift[row] = dz;
      scratch.sums[row] = dz_n;
    }
  }
  __syncthreads();
  for (std::int64_t image = warp_index(); image < call.images.batch; image += warps) {
    float mean_d = 0.0f, mean_dn = 0.0f;
    for (int i = lane_index(); i < width; i += kWarpSize) {
      const std::int64_t channel = first + i, row = image * partition.channels + channel;
      const float scale = affine.scale.data ? 1.0f + load(affine.scale, image, channel, 0) : 1.0f;
      const float weight = load(affine.weight, 0, channel, 0), dz = call.dshift[row], dz_n = scratch.sums[row];
      call.dscale[row] = weight * dz_n + load(affine.bias, 0, channel, 0) * dz;
      mean_d += weight * scale * dz;
      mean_dn += weight * scale * dz_n;
    }
    mean_d = warp_sum(mean_d) / partition.group_elements;
    mean_dn = warp_sum(mean_dn) / partition.group_elements;
    if (lane_index() == 0) {
      store_vector(scratch.means + (image * partition.num_groups + blockIdx.x) * 2,
                   Vector<float, 2>{{mean_d, mean_dn}});
    }
  }
  for (int i = static_cast<int>(threadIdx.x); i < width; i += static_cast<int>(blockDim.x)) {
    float dweight = 0.0f, dbias = 0.0f;
    for (std::int64_t image = 0; image < call.images.batch; ++image) {
      const std::int64_t row = image * partition.channels + first + i;
      const float scale = affine.scale.data ? 1.0f + load(affine.scale, image, first + i, 0) : 1.0f;
      dweight += scale * scratch.sums[row];
      dbias += scale * call.dshift[row];
    }
    call.dweight[first + i] = dweight;
    call.dbias[first + i] = dbias;
  }
}

template <class Word>
__global__ void __launch_bounds__(kThreads, 2)
    dx_kernel(const __grid_constant__ GroupNormBackward call, const __grid_constant__ Partition partition) {
  using T = typename Word::Element;
  constexpr int kWidth = Word::kWidth, kChannels = Word::kChannels;
  const Place place(partition);
  float* gain = dynamic_shared<float>();
  float* offset = gain + partition.affine_floats() / 2;
  const float* means = Scratch(call, partition).means;
  for (int tile = 0; tile < partition.units; tile += partition.tile_units) {
    if (tile > 0) __syncthreads();
    load_affine(call.affine, partition, place, tile, gain, offset);
    __syncthreads();
    if (!place.works) continue;
    const Line<kChannels> line(call, partition, place, gain, offset);
    float constant[kChannels], slope[kChannels];
#pragma unroll
    for (int j = 0; j < kChannels; ++j) {
      const auto pair = load_vector<2>(means + 2 * line.group[j]);
      constant[j] = pair[0] * line.rstd[j];
      slope[j] = pair[1] * line.rstd[j] * line.rstd[j];
    }
    for_each_word<2>(
        partition, place, tile, [&](std::int64_t from) { return load_pair<Word>(call, from); },
        [&](std::int64_t to, const auto& pair) {
          const auto terms = gradients_of_z(line, pair, call.affine.silu);
          Vector<T, kWidth> dx;
#pragma unroll
          for (int j = 0; j < kWidth; ++j) {
            const int i = kChannels == 1 ? 0 : j;
            dx[j] = from_float<T>(terms.dz[j] * line.gain[i] - constant[i] - terms.centered[j] * slope[i]);
          }
          store_vector(static_cast<T*>(call.dx) + to, dx);
        });
  }
}

Partition plan(const GroupNormBackward& call, std::int64_t parts) {
  const bool aligned = is_aligned(call.dy) && is_aligned(call.x) && is_aligned(call.dx);
  const std::int64_t groups = row_groups(call.images, aligned, kThreads);
  if (!parts) parts = many_parts(call.images, groups, kThreads);
  return partition_images(call.images, groups, aligned, parts, kThreads);
}

}  // namespace

std::int64_t group_norm_backward_scratch(const GroupNormBackward& call, std::int64_t parts) {
  return is_valid(call.images) ? Scratch::floats(call.images, plan(call, parts)) : 0;
}

int group_norm_backward(const GroupNormBackward& call, void* stream, std::int64_t parts) {
  if (!is_valid(call.images)) return kInvalidValue;
  const Partition partition = plan(call, parts);
  if (!is_valid(call.images, partition)) return kInvalidValue;
  const dim3 grid = grid_of(call.images, partition), block(static_cast<unsigned>(partition.threads));
  return dispatch_words(call.images, partition, [&](auto word) {
    using Word = decltype(word);
    const std::size_t affine_bytes = sizeof(float) * partition.affine_floats();
    const std::size_t sums_bytes = affine_bytes + sizeof(float) * partition.sums_floats();
    if (const int error = launch(sums_kernel<Word>, grid, block, sums_bytes, stream, call, partition)) return error;
    const dim3 groups(static_cast<unsigned>(call.images.num_groups));
    if (const int error = launch(reduce_kernel, groups, dim3(kReduceThreads), 0, stream, call, partition)) return error;
    return launch(dx_kernel<Word>, grid, block, affine_bytes, stream, call, partition);
  });
}

}  // namespace resshift::cuda

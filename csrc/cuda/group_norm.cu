// group_norm: statistics, affine, scale-shift and SiLU.
//
// A group that one block can afford takes one launch: the block keeps what it reads in shared memory, or where that is
// too small reads it again. Larger ones take two: `moments_kernel` writes mean and squared deviations of each part of
// the image, and every block of `apply_kernel` combines the parts of its groups, in the same order, and normalizes one
// part. All values are taken relative to the group's first one, and slots are combined about a guess of the mean that
// is then corrected, so that nothing cancels where the mean is far larger than the deviation.

#include "group_norm.h"

#include <algorithm>

#include "../common/activations.h"
#include "../common/moments.h"
#include "device.h"
#include "group_norm_partition.h"

namespace resshift::cuda {
namespace {

using namespace partitioning;

constexpr int kSplitThreads = 256;
// Every architecture from sm_80 on gives a block so much; and two, where a multiprocessor has more than 200 KiB.
constexpr int kSharedBytes = 96 * 1024;

// Moments of what a thread has seen, one of each number of a word.
template <int WIDTH>
struct Slots {
  float count = 0.0f, mean[WIDTH] = {}, squares[WIDTH] = {};

  template <class T, int N>
  RSF_DEVICE void add(const Vector<T, WIDTH>& word, const float (&origin)[N]) {
    count += 1.0f;
    const float share = 1.0f / count;
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) {
      const float value = to_float(word[j]) - origin[N == 1 ? 0 : j], difference = value - mean[j];
      mean[j] += difference * share;
      squares[j] += difference * (value - mean[j]);
    }
  }

  RSF_DEVICE Moments together() const {
    Moments result;
    result.count = count * WIDTH;
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) result.mean += mean[j] * (1.0f / WIDTH);
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) {
      const float difference = mean[j] - result.mean;
      result.squares += squares[j] + difference * difference * count;
    }
    return result;
  }

  // To shared memory: means, squares and counts of all threads, each thread's in steps of the number of threads.
  RSF_DEVICE void store(const Partition& partition, float* memory) const {
    const int threads = partition.threads, slots = partition.slots();
    float* own = memory + threadIdx.x;
    if (slots == 1) {
      const Moments all = together();
      own[0] = all.mean;
      own[threads] = all.squares;
      own[2 * threads] = all.count;
      return;
    }
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) {
      own[j * threads] = mean[j];
      own[(WIDTH + j) * threads] = squares[j];
    }
    own[2 * WIDTH * threads] = count;
  }
};

// The moments that threads stored for a group of the chunk, those of a lane of the warp one after another.
template <class Word>
class StoredSlots {
 public:
  RSF_DEVICE StoredSlots(const Partition& partition, const float* memory, int group)
      : memory_(memory), threads_(partition.threads), slots_(partition.slots()) {
    if (partition.groups == 1) {  // one slot a thread
      rows_ = partition.threads;
      row_ = lane_index();
      return;
    }
    rows_ = partition.lanes;
    width_ = partition.group_channels;
    row_threads_ = partition.tile_units;
    first_ = group * width_;
    row_ = lane_index() / width_;
    column_ = lane_index() % width_;
  }

  RSF_DEVICE bool more() const { return row_ < rows_; }

  RSF_DEVICE void advance() {
    column_ += kWarpSize % width_;
    row_ += kWarpSize / width_;
    if (column_ < width_) return;
    column_ -= width_;
    ++row_;
  }

  RSF_DEVICE Moments get() const {
    const int channel = first_ + column_, word = slots_ == 1 ? channel : channel / Word::kChannels;
    const int slot = slots_ == 1 ? 0 : channel % Word::kChannels;
    const float* own = memory_ + row_ * row_threads_ + word;
    Moments result;
    result.mean = own[slot * threads_];
    result.squares = own[(slots_ + slot) * threads_];
    result.count = own[2 * slots_ * threads_];
    return result;
  }

 private:
  const float* memory_;
  int threads_, slots_, rows_, row_;
  int column_ = 0, width_ = 1, row_threads_ = 1, first_ = 0;
};

// The moments of the parts of a group.
class StoredParts {
 public:
  RSF_DEVICE StoredParts(const Partition& partition, const float* parts)
      : partition_(partition), parts_(parts), part_(lane_index()) {}
  RSF_DEVICE bool more() const { return part_ < partition_.parts; }
  RSF_DEVICE void advance() { part_ += kWarpSize; }

  RSF_DEVICE Moments get() const {
    const auto stored = load_vector<2>(parts_ + 2 * part_);
    Moments result;
    result.count = partition_.part_numbers(part_);
    result.mean = stored[0];
    result.squares = stored[1];
    return result;
  }

 private:
  const Partition& partition_;
  const float* parts_;
  int part_;
};

// Combine moments of `total` numbers by a warp; every lane has the result. Only sums are formed, none of large squares.
template <class Source>
RSF_DEVICE Moments combine(const Source& source, float total) {
  float sum = 0.0f, rest = 0.0f, squares = 0.0f;
  for (Source from = source; from.more(); from.advance()) {
    const Moments part = from.get();
    sum += part.count * part.mean;
  }
  const float guess = warp_sum(sum) / total;
  for (Source from = source; from.more(); from.advance()) {
    const Moments part = from.get();
    const float difference = part.mean - guess;
    rest += part.count * difference;
    squares += part.squares + part.count * difference * difference;
  }
  rest = warp_sum(rest) / total;
  Moments result;
  result.count = total;
  result.mean = guess + rest;
  result.squares = warp_sum(squares) - total * rest * rest;
  return result;
}

// A group's statistics; its mean is that of the output and what float32 cannot hold of it.
struct Statistics {
  float mean, rest, rstd;

  RSF_DEVICE Statistics(const Moments& relative, float origin, float eps) {
    mean = origin + relative.mean;
    const float added = mean - origin;  // Knuth's two-sum
    rest = (origin - (mean - added)) + (relative.mean - added);
    const float variance = relative.squares < 0.0f ? 0.0f : relative.variance();  // NaN stays
    rstd = rsqrtf(variance + eps);
  }
};

template <class Word>
RSF_DEVICE float origin_of(const GroupNorm& call, const Partition& partition, const Place& place, int group) {
  const std::int64_t channel =
      (static_cast<std::int64_t>(place.chunk) * partition.groups + group) * partition.group_channels;
  const std::int64_t offset = place.image * partition.channels * partition.pixels + channel * partition.channel_stride;
  return to_float(static_cast<const typename Word::Element*>(call.x)[offset]);
}

// Moments of the groups of the block's partition to `memory`, keeping the words in `cache` where there is one.
template <class Word>
RSF_DEVICE void collect_moments(const GroupNorm& call, const Partition& partition, const Place& place, float* memory,
                                typename Word::Element* cache) {
  constexpr int kWidth = Word::kWidth;
  const auto* x = static_cast<const typename Word::Element*>(call.x);
  float origin[Word::kChannels];
  GroupOfChannel of(partition, place.works ? place.unit * Word::kChannels : 0);
#pragma unroll
  for (int j = 0; j < Word::kChannels; ++j, of.advance(partition))
    origin[j] = origin_of<Word>(call, partition, place, of.group);
  Slots<kWidth> slots;
  int cached = static_cast<int>(threadIdx.x) * kWidth;
  for (int tile = 0; tile < partition.units; tile += partition.tile_units) {
    for_each_word<4>(
        partition, place, tile, [&](std::int64_t offset) { return load_vector<kWidth>(x + offset); },
        [&](std::int64_t, const Vector<typename Word::Element, kWidth>& word) {
          if (cache) {
            store_vector(cache + cached, word);
            cached += partition.threads * kWidth;
          }
          slots.add(word, origin);
        });
  }
  slots.store(partition, memory);
}

// By one lane: a group's statistics for the block, and for the output if the block is the one that writes them.
RSF_DEVICE void publish(const GroupNorm& call, const Partition& partition, const Place& place, int group,
                        const Statistics& statistics, Statistics* statistics_of) {
  statistics_of[group] = statistics;
  if (place.part != 0) return;
  const std::int64_t index = place.image * partition.num_groups + place.chunk * partition.groups + group;
  call.mean[index] = statistics.mean;
  call.rstd[index] = statistics.rstd;
}

// Write y for the block's partition; the first tile's gain and offset are in shared memory already.
template <class Word>
RSF_DEVICE void normalize(const GroupNorm& call, const Partition& partition, const Place& place,
                          const Statistics* statistics_of, float* shared_gain, float* shared_offset,
                          const typename Word::Element* cache) {
  using T = typename Word::Element;
  constexpr int kWidth = Word::kWidth, kChannels = Word::kChannels;
  const auto* x = static_cast<const T*>(call.x);
  auto* y = static_cast<T*>(call.y);
  const bool silu_follows = call.affine.silu;
  int cached = static_cast<int>(threadIdx.x) * kWidth;
  for (int tile = 0; tile < partition.units; tile += partition.tile_units) {
    if (tile > 0) {
      __syncthreads();
      load_affine(call.affine, partition, place, tile, shared_gain, shared_offset);
      __syncthreads();
    }
    if (!place.works || tile + place.unit >= partition.units) continue;
    float mean[kChannels], gain[kChannels], offset[kChannels];
    GroupOfChannel of(partition, place.unit * kChannels);
#pragma unroll
    for (int j = 0; j < kChannels; ++j, of.advance(partition)) {
      const int i = place.unit * kChannels + j;
      const Statistics statistics = statistics_of[of.group];
      mean[j] = statistics.mean;
      gain[j] = shared_gain[i] * statistics.rstd;
      offset[j] = shared_offset[i] - statistics.rest * gain[j];
    }
    const auto finish = [&](std::int64_t place_of_word, Vector<T, kWidth> word) {
      float z[kWidth];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const int i = kChannels == 1 ? 0 : j;
        z[j] = (to_float(word[j]) - mean[i]) * gain[i] + offset[i];
      }
      if (silu_follows) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) z[j] = silu(z[j]);
      }
#pragma unroll
      for (int j = 0; j < kWidth; ++j) word[j] = from_float<T>(z[j]);
      store_vector(y + place_of_word, word);
    };
    if (cache) {
      const auto next = [&](std::int64_t) {
        const auto word = load_vector<kWidth>(cache + cached);
        cached += partition.threads * kWidth;
        return word;
      };
      for_each_word<1>(partition, place, tile, next, finish);
    } else {
      for_each_word<2>(
          partition, place, tile, [&](std::int64_t from) { return load_vector<kWidth>(x + from); }, finish);
    }
  }
}

// All pixels of a chunk by one block.
template <class Word>
__global__ void __launch_bounds__(kMaxThreads, 1)
    group_norm_kernel(const __grid_constant__ GroupNorm call, const __grid_constant__ Partition partition) {
  const Place place(partition);
  float* memory = dynamic_shared<float>();
  auto* cache = partition.cache_bytes ? reinterpret_cast<typename Word::Element*>(memory) : nullptr;
  float* moments = memory + partition.cache_floats();
  float* gain = moments + partition.moments_floats();
  float* offset = gain + partition.affine_floats() / 2;
  auto* statistics_of = reinterpret_cast<Statistics*>(gain + partition.affine_floats());
  load_affine(call.affine, partition, place, 0, gain, offset);
  collect_moments<Word>(call, partition, place, moments, cache);
  __syncthreads();
  for (int group = warp_index(); group < partition.groups; group += partition.threads / kWarpSize) {
    const Moments all = combine(StoredSlots<Word>(partition, moments, group), partition.part_numbers(place.part));
    const Statistics statistics(all, origin_of<Word>(call, partition, place, group), call.eps);
    if (lane_index() == 0) publish(call, partition, place, group, statistics, statistics_of);
  }
  __syncthreads();
  normalize<Word>(call, partition, place, statistics_of, gain, offset, cache);
}

// Mean, relative to the group's first value, and squared deviations of each part: scratch [B, G, parts, 2].
template <class Word>
__global__ void __launch_bounds__(kSplitThreads, 3)
    moments_kernel(const __grid_constant__ GroupNorm call, const __grid_constant__ Partition partition) {
  const Place place(partition);
  float* moments = dynamic_shared<float>();
  collect_moments<Word>(call, partition, place, moments, nullptr);
  __syncthreads();
  for (int group = warp_index(); group < partition.groups; group += partition.threads / kWarpSize) {
    const Moments all = combine(StoredSlots<Word>(partition, moments, group), partition.part_numbers(place.part));
    const std::int64_t row = place.image * partition.num_groups + place.chunk * partition.groups + group;
    if (lane_index() == 0) {
      store_vector(call.scratch + (row * partition.parts + place.part) * 2, Vector<float, 2>{{all.mean, all.squares}});
    }
  }
}

template <class Word>
__global__ void __launch_bounds__(kSplitThreads, 3)
    apply_kernel(const __grid_constant__ GroupNorm call, const __grid_constant__ Partition partition) {
  const Place place(partition);
  float* gain = dynamic_shared<float>();
  float* offset = gain + partition.affine_floats() / 2;
  auto* statistics_of = reinterpret_cast<Statistics*>(gain + partition.affine_floats());
  load_affine(call.affine, partition, place, 0, gain, offset);
  for (int group = warp_index(); group < partition.groups; group += partition.threads / kWarpSize) {
    const std::int64_t row = place.image * partition.num_groups + place.chunk * partition.groups + group;
    const StoredParts parts(partition, call.scratch + row * partition.parts * 2);
    const Moments all = combine(parts, partition.group_numbers);
    const Statistics statistics(all, origin_of<Word>(call, partition, place, group), call.eps);
    if (lane_index() == 0) publish(call, partition, place, group, statistics, statistics_of);
  }
  __syncthreads();
  normalize<Word>(call, partition, place, statistics_of, gain, offset, nullptr);
}

std::size_t shared_bytes(int floats, const Partition& partition) {
  return sizeof(float) * floats + sizeof(Statistics) * partition.groups;
}

std::size_t single_bytes(const Partition& partition) {
  return shared_bytes(partition.cache_floats() + partition.moments_floats() + partition.affine_floats(), partition);
}

int element_size(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

// All of a chunk's words in shared memory, if they fit beside the rest.
void keep_words(Partition& partition, Dtype dtype) {
  const std::int64_t words =
      divide_up(partition.units, partition.tile_units) * divide_up(partition.part_positions, partition.lanes);
  const std::int64_t bytes = divide_up(words * partition.threads * partition.width * element_size(dtype), 16) * 16;
  if (bytes + static_cast<std::int64_t>(single_bytes(partition)) <= kSharedBytes)
    partition.cache_bytes = static_cast<int>(bytes);
}

// Cycles of a multiprocessor for so many channels of a pixel: it reads or writes about a sector of 32 bytes in one, and
// takes about four for the numbers of a warp that come one by one.
double row_cycles(const GroupedImages& images, const Partition& partition) {
  const double channels = static_cast<double>(partition.units) * partition.unit_channels;
  const double sectors = channels * element_size(images.dtype) / 32;
  return std::max(partition.channels_last ? std::max(sectors, 1.0) : sectors,
                  partition.width == 1 ? channels / 8 : 0.0);
}

// One part where that is faster by a count of cycles, from sizes alone: sums are then the same on every GPU.
Partition plan(const GroupNorm& call) {
  constexpr double kProcessors = 132;      // an H100's
  constexpr double kLaunchCycles = 5000;   // of a second launch: its start, its first loads and the first one's end
  constexpr double kChunkNumbers = 81920;  // beyond these the second reading finds no more in the L2 cache
  const GroupedImages& images = call.images;
  const bool aligned = is_aligned(call.x) && is_aligned(call.y);
  const std::int64_t most = row_groups(images, aligned, kSplitThreads);
  const std::int64_t parts = call.parts ? call.parts : many_parts(images, most, kSplitThreads);
  Partition best = partition_images(images, most, aligned, parts, kSplitThreads);
  if (call.parts > 1) return best;
  const double pixels = static_cast<double>(images.pixels);
  const double blocks = static_cast<double>(images.batch * best.chunks);
  double least = kLaunchCycles + 3 * blocks / kProcessors * pixels * row_cycles(images, best);
  if (call.parts == 1) least = HUGE_VAL;
  for (std::int64_t groups = 1; groups <= most; ++groups) {
    if (images.num_groups % groups) continue;
    Partition partition = partition_images(images, groups, aligned, 1, kMaxThreads);
    keep_words(partition, images.dtype);
    if (!call.parts && pixels * static_cast<double>(groups * partition.group_channels) > kChunkNumbers) break;
    const double rounds =
        static_cast<double>(divide_up(images.batch * partition.chunks, static_cast<int>(kProcessors)));
    const double cycles = rounds * pixels * row_cycles(images, partition) * (partition.cache_bytes ? 2 : 3);
    if (cycles < least) {
      least = cycles;
      best = partition;
    }
  }
  return best;
}

}  // namespace

namespace partitioning {

bool is_valid(const GroupedImages& images) {
  return images.batch > 0 && images.pixels > 0 && images.num_groups > 0 && images.channels >= images.num_groups &&
         images.channels <= INT32_MAX && images.channels % images.num_groups == 0;
}

bool is_valid(const GroupedImages& images, const Partition& partition) {
  return partition.part_positions <= INT32_MAX / 2 && images.batch <= INT32_MAX / partition.parts / partition.chunks;
}

std::int64_t row_groups(const GroupedImages& images, bool aligned, int threads) {
  constexpr std::int64_t kFewestBytes = 64, kMostBytes = 1024;  // two sectors; wider ones leave too few pixels
  if (!images.channels_last) return 1;
  // A chunk of several groups is one tile, also where a thread has but one number of it.
  const std::int64_t limit =
      aligned ? kMostBytes : std::min<std::int64_t>(kMostBytes, threads * element_size(images.dtype));
  const std::int64_t bytes = images.channels / images.num_groups * element_size(images.dtype);
  std::int64_t most = 1;
  for (std::int64_t groups = 1; groups <= images.num_groups && groups * bytes <= limit; ++groups) {
    if (images.num_groups % groups) continue;
    if (groups * bytes % 16 == 0 && groups * bytes >= kFewestBytes) return groups;
    if (groups * bytes <= 2 * kFewestBytes) most = groups;
  }
  return most;
}

std::int64_t many_parts(const GroupedImages& images, std::int64_t groups, int threads) {
  constexpr std::int64_t kBlocks = 512;     // about four a multiprocessor
  constexpr std::int64_t kMostParts = 128;  // of an image: each block of the second launch reads them all
  constexpr std::int64_t kFewestWords = 4;  // of a thread
  const std::int64_t numbers = images.channels / images.num_groups * groups * images.pixels;
  const std::int64_t words = numbers * element_size(images.dtype) / 16;
  const std::int64_t parts = std::min(kBlocks * groups / (images.batch * images.num_groups), kMostParts);
  return std::max<std::int64_t>(std::min(parts, words / (threads * kFewestWords)), 1);
}

Partition partition_images(const GroupedImages& images, std::int64_t groups, bool aligned, std::int64_t parts,
                           int threads) {
  const std::int64_t group_channels = images.channels / images.num_groups, chunk_channels = groups * group_channels;
  const int width = 16 / element_size(images.dtype);
  const std::int64_t along = images.channels_last ? chunk_channels : images.pixels;
  const bool wide = aligned && along % width == 0 && (!images.channels_last || images.channels % width == 0);
  Partition partition{};
  partition.channels = images.channels;
  partition.pixels = images.pixels;
  partition.channels_last = images.channels_last;
  partition.num_groups = static_cast<int>(images.num_groups);
  partition.group_channels = static_cast<int>(group_channels);
  partition.groups = static_cast<int>(groups);
  partition.chunks = static_cast<int>(images.num_groups / groups);
  partition.width = wide ? width : 1;
  partition.unit_channels = wide && images.channels_last ? width : 1;
  partition.unit_stride = images.channels_last ? partition.unit_channels : images.pixels;
  partition.position_stride = images.channels_last ? images.channels : partition.width;
  partition.channel_stride = images.channels_last ? 1 : images.pixels;
  partition.positions = images.channels_last ? images.pixels : images.pixels / partition.width;
  partition.units = static_cast<int>(chunk_channels / partition.unit_channels);
  const std::int64_t part_positions = divide_up(partition.positions, parts);
  if (images.channels_last) {
    partition.tile_units = std::min(partition.units, threads);
    partition.lanes = static_cast<int>(std::min<std::int64_t>(threads / partition.tile_units, part_positions));
  } else {
    // Neighbouring threads read whole lines of 128 bytes, where the pixels are as many.
    const int line = wide ? 8 : kWarpSize;
    const int lanes = std::max(threads / partition.units / line * line, line);
    partition.lanes = static_cast<int>(std::min<std::int64_t>(lanes, part_positions));
    partition.tile_units = std::min(partition.units, threads / partition.lanes);
  }
  partition.threads = static_cast<int>(divide_up(partition.lanes * partition.tile_units, kWarpSize)) * kWarpSize;
  partition.part_positions = divide_up(part_positions, partition.lanes) * partition.lanes;
  partition.parts = static_cast<int>(divide_up(partition.positions, partition.part_positions));
  const std::int64_t numbers = group_channels * (images.channels_last ? 1 : partition.width);  // of a position
  partition.group_numbers = static_cast<float>(partition.positions * numbers);
  partition.full_part_numbers = static_cast<float>(partition.part_positions * numbers);
  partition.last_part_numbers =
      static_cast<float>((partition.positions - (partition.parts - 1) * partition.part_positions) * numbers);
  return partition;
}

}  // namespace partitioning

std::int64_t group_norm_scratch(const GroupNorm& call) {
  if (!is_valid(call.images)) return 0;
  const Partition partition = plan(call);
  return partition.parts == 1 ? 0 : 2 * call.images.batch * call.images.num_groups * partition.parts;
}

int group_norm(const GroupNorm& call, void* stream) {
  if (!is_valid(call.images)) return kInvalidValue;
  const Partition partition = plan(call);
  if (!is_valid(call.images, partition)) return kInvalidValue;
  const dim3 grid = grid_of(call.images, partition), block(static_cast<unsigned>(partition.threads));
  return dispatch_words(call.images, partition, [&](auto word) {
    using Word = decltype(word);
    if (partition.parts == 1) {
      return launch(group_norm_kernel<Word>, grid, block, single_bytes(partition), stream, call, partition);
    }
    const std::size_t moments_bytes = sizeof(float) * partition.moments_floats();
    if (const int error = launch(moments_kernel<Word>, grid, block, moments_bytes, stream, call, partition))
      return error;
    return launch(apply_kernel<Word>, grid, block, shared_bytes(partition.affine_floats(), partition), stream, call,
                  partition);
  });
}

}  // namespace resshift::cuda

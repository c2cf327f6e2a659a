// group_norm: statistics, affine, scale-shift and SiLU.
//
// Groups that are small enough for one block take one launch: the block keeps what it reads in shared memory or, where
// that is too small, reads it again. Larger groups take two: `moments_kernel` writes mean and squared deviations of
// each part of the image, and every block of `apply_kernel` combines the parts of its groups, in the same order, and
// normalizes one part. All values are taken relative to the group's first one, and slots are combined about an estimate
// of the mean that is then corrected, so that nothing cancels where the mean is far larger than the deviation.

#include "group_norm.h"

#include "../common/activations.h"
#include "device.h"
#include "group_norm_plan.h"
#include "moments.h"

namespace resshift::cuda {
namespace {

using namespace partitioning;

// Moments of what a thread has seen, separately for each element of a word.
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

  // Write means, squares and counts to shared memory, where those of one kind lie thread by thread.
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

// Iterates over the moments that threads stored for a group of the chunk; each lane of a warp takes some of them.
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

// Iterates over the moments of the parts of a group in the same way.
class StoredParts {
 public:
  RSF_DEVICE StoredParts(const Partition& partition, const float* parts)
      : partition_(partition), parts_(parts), part_(lane_index()) {}
  RSF_DEVICE bool more() const { return part_ < partition_.parts; }
  RSF_DEVICE void advance() { part_ += kWarpSize; }

  RSF_DEVICE Moments get() const {
    const auto stored = load_vector<2>(parts_ + 2 * part_);
    Moments result;
    result.count = partition_.part_elements(part_);
    result.mean = stored[0];
    result.squares = stored[1];
    return result;
  }

 private:
  const Partition& partition_;
  const float* parts_;
  int part_;
};

// A group's statistics; the mean is `mean` + `rest`, the second being what float32 cannot hold in the first.
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

static_assert(sizeof(Statistics) == kStatisticsFloats * sizeof(float));

template <class Word>
RSF_DEVICE float origin_of(const GroupNorm& call, const Partition& partition, const Place& place, int group) {
  const std::int64_t channel =
      (static_cast<std::int64_t>(place.chunk) * partition.groups + group) * partition.group_channels;
  const std::int64_t offset = place.image * partition.channels * partition.pixels + channel * partition.channel_stride;
  return to_float(static_cast<const typename Word::Element*>(call.x)[offset]);
}

// Write the moments of the block's groups to `memory`, and the words to `cache` if there is one.
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

// Called by one lane: store a group's statistics for the block, and in the output if this is the block that writes
// them.
RSF_DEVICE void publish(const GroupNorm& call, const Partition& partition, const Place& place, int group,
                        const Statistics& statistics, Statistics* statistics_of) {
  statistics_of[group] = statistics;
  if (place.part != 0) return;
  const std::int64_t index = place.image * partition.num_groups + place.chunk * partition.groups + group;
  call.mean[index] = statistics.mean;
  call.rstd[index] = statistics.rstd;
}

// Write the block's part of y; the first tile's gain and offset are in shared memory already.
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
    const Moments all = combine(StoredSlots<Word>(partition, moments, group), partition.part_elements(place.part));
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
    const Moments all = combine(StoredSlots<Word>(partition, moments, group), partition.part_elements(place.part));
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
    const Moments all = combine(parts, partition.group_elements);
    const Statistics statistics(all, origin_of<Word>(call, partition, place, group), call.eps);
    if (lane_index() == 0) publish(call, partition, place, group, statistics, statistics_of);
  }
  __syncthreads();
  normalize<Word>(call, partition, place, statistics_of, gain, offset, nullptr);
}

}  // namespace

std::int64_t group_norm_scratch(const GroupNorm& call, std::int64_t parts) {
  if (!is_valid(call.images)) return 0;
  const Partition partition = plan_forward(call, parts);
  return partition.parts == 1 ? 0 : 2 * call.images.batch * call.images.num_groups * partition.parts;
}

int group_norm(const GroupNorm& call, void* stream, std::int64_t parts) {
  if (!is_valid(call.images)) return kInvalidValue;
  const Partition partition = plan_forward(call, parts);
  if (!is_valid(call.images, partition)) return kInvalidValue;
  const dim3 grid = grid_of(call.images, partition), block(static_cast<unsigned>(partition.threads));
  return dispatch_words(call.images, partition, [&](auto word) {
    using Word = decltype(word);
    if (partition.parts == 1) {
      return launch(group_norm_kernel<Word>, grid, block, partition.single_bytes(), stream, call, partition);
    }
    const std::size_t moments_bytes = sizeof(float) * partition.moments_floats();
    if (const int error = launch(moments_kernel<Word>, grid, block, moments_bytes, stream, call, partition))
      return error;
    return launch(apply_kernel<Word>, grid, block, partition.apply_bytes(), stream, call, partition);
  });
}

}  // namespace resshift::cuda

// Counts of cycles and bytes decide how images are divided.
#include "group_norm_plan.h"

#include <algorithm>

namespace resshift::cuda::partitioning {
namespace {

// Every architecture from sm_80 on gives a block so much; and two, where a multiprocessor has more than 200 KiB.
constexpr int kSharedBytes = 96 * 1024;

// Keep a chunk's words in shared memory, if they fit beside the rest.
void keep_words(Partition& partition, Dtype dtype) {
  const std::int64_t words =
      divide_up(partition.units, partition.tile_units) * divide_up(partition.part_positions, partition.lanes);
  const std::int64_t bytes = round_up(words * partition.threads * partition.width * size_of(dtype), 16);
  if (bytes + static_cast<std::int64_t>(partition.single_bytes()) <= kSharedBytes)
    partition.cache_bytes = static_cast<int>(bytes);
}

// Cycles of a multiprocessor for a chunk's channels of one pixel: it reads or writes about a sector in one, and takes
// about four for a warp's elements that are not in whole words.
double row_cycles(const GroupedImages& images, const Partition& partition) {
  const double channels = static_cast<double>(partition.units) * partition.unit_channels;
  const double sectors = channels * size_of(images.dtype) / kSectorBytes;
  return std::max(partition.channels_last ? std::max(sectors, 1.0) : sectors,
                  partition.width == 1 ? channels / 8 : 0.0);
}

}  // namespace

bool is_valid(const GroupedImages& images) {
  return images.batch > 0 && images.pixels > 0 && images.num_groups > 0 && images.channels >= images.num_groups &&
         images.channels <= INT32_MAX && images.channels % images.num_groups == 0;
}

bool is_valid(const GroupedImages& images, const Partition& partition) {
  return partition.part_positions <= INT32_MAX / 2 && images.batch <= INT32_MAX / partition.parts / partition.chunks;
}

std::int64_t row_groups(const GroupedImages& images, bool aligned, int threads) {
  if (!images.channels_last) return 1;
  // A chunk of several groups must be one tile, even where each thread has a single element of it.
  const std::int64_t limit =
      aligned ? kMaxRowBytes : std::min<std::int64_t>(kMaxRowBytes, threads * size_of(images.dtype));
  const std::int64_t bytes = images.channels / images.num_groups * size_of(images.dtype);
  std::int64_t most = 1;
  for (std::int64_t groups = 1; groups <= images.num_groups && groups * bytes <= limit; ++groups) {
    if (images.num_groups % groups) continue;
    if (groups * bytes % 16 == 0 && groups * bytes >= kMinRowBytes) return groups;
    if (groups * bytes <= 2 * kMinRowBytes) most = groups;
  }
  return most;
}

std::int64_t many_parts(const GroupedImages& images, std::int64_t groups, int threads) {
  constexpr std::int64_t kFewestWords = 4;  // of a thread
  const std::int64_t elements = images.channels / images.num_groups * groups * images.pixels;
  const std::int64_t words = elements * size_of(images.dtype) / 16;
  const std::int64_t parts = std::min(kSplitBlocks * groups / (images.batch * images.num_groups), kMaxParts);
  return std::max<std::int64_t>(std::min(parts, words / (threads * kFewestWords)), 1);
}

Partition partition_images(const GroupedImages& images, std::int64_t groups, bool aligned, std::int64_t parts,
                           int threads) {
  const std::int64_t group_channels = images.channels / images.num_groups, chunk_channels = groups * group_channels;
  const int width = 16 / size_of(images.dtype);
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
    // Neighbouring threads read whole lines of 128 bytes, if there are pixels enough.
    const int line = wide ? 8 : kWarpSize;
    const int lanes = std::max(threads / partition.units / line * line, line);
    partition.lanes = static_cast<int>(std::min<std::int64_t>(lanes, part_positions));
    partition.tile_units = std::min(partition.units, threads / partition.lanes);
  }
  partition.threads = static_cast<int>(divide_up(partition.lanes * partition.tile_units, kWarpSize)) * kWarpSize;
  partition.part_positions = divide_up(part_positions, partition.lanes) * partition.lanes;
  partition.parts = static_cast<int>(divide_up(partition.positions, partition.part_positions));
  const std::int64_t last_positions = partition.positions - (partition.parts - 1) * partition.part_positions;
  const std::int64_t elements = group_channels * (images.channels_last ? 1 : partition.width);  // of a position
  partition.group_elements = static_cast<float>(partition.positions * elements);
  partition.full_part_elements = static_cast<float>(partition.part_positions * elements);
  partition.last_part_elements = static_cast<float>(last_positions * elements);
  return partition;
}

Partition plan_forward(const GroupNorm& call, std::int64_t parts) {
  const GroupedImages& images = call.images;
  const bool aligned = is_aligned(call.x) && is_aligned(call.y);
  const std::int64_t most = row_groups(images, aligned, kSplitThreads);
  const std::int64_t split_parts = parts ? parts : many_parts(images, most, kSplitThreads);
  Partition best = partition_images(images, most, aligned, split_parts, kSplitThreads);
  if (parts > 1) return best;
  const double pixels = static_cast<double>(images.pixels);
  const double blocks = static_cast<double>(images.batch * best.chunks);
  double least = kLaunchCycles + 3 * blocks / kProcessors * pixels * row_cycles(images, best);
  if (parts == 1) least = HUGE_VAL;
  for (std::int64_t groups = 1; groups <= most; ++groups) {
    if (images.num_groups % groups) continue;
    Partition partition = partition_images(images, groups, aligned, 1, kMaxThreads);
    keep_words(partition, images.dtype);
    if (!parts && pixels * static_cast<double>(groups * partition.group_channels) > kSingleElements) break;
    const double rounds = static_cast<double>(divide_up(images.batch * partition.chunks, kProcessors));
    const double cycles = rounds * pixels * row_cycles(images, partition) * (partition.cache_bytes ? 2 : 3);
    if (cycles < least) {
      least = cycles;
      best = partition;
    }
  }
  return best;
}

}  // namespace resshift::cuda::partitioning

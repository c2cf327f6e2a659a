// How the images of group_norm are divided among blocks: chosen on the host from sizes alone, so that sums, and with
// them results, are the same on every GPU.
#pragma once

#include "group_norm_partition.h"

namespace resshift::cuda::partitioning {

// The Triton kernels plan by the same counts: those named in comments are constants of kernels/group_norm_tiles.py, and
// python_tests/csrc/test_group_norm.py holds each pair equal.
constexpr std::int64_t kMinRowBytes = 64;    // MIN_ROW_BYTES of a channels-last chunk: two sectors
constexpr std::int64_t kMaxRowBytes = 1024;  // MAX_ROW_BYTES: wider chunks leave too few pixels to a block
constexpr int kSectorBytes = 32;             // SECTOR: what a multiprocessor reads or writes in about a cycle
constexpr int kProcessors = 132;             // PROCESSORS: an H100's
constexpr int kLaunchCycles = 5000;          // LAUNCH_CYCLES of a second launch: its start and its first loads
constexpr std::int64_t kSplitBlocks = 512;   // SPLIT_PROGRAMS: about four a multiprocessor
constexpr std::int64_t kMaxParts = 128;      // MAX_PARTS of an image: each block of the second launch reads them all
constexpr int kSingleElements = 81920;       // SINGLE_ELEMENTS: more do not stay in the L2 cache to be read again

// Divide images into chunks of `groups` groups and about `parts` parts, for blocks of at most `threads`.
Partition partition_images(const GroupedImages& images, std::int64_t groups, bool aligned, std::int64_t parts,
                           int threads);

// Groups of a chunk where images are divided into parts, for blocks of `threads`: as few as make whole words.
std::int64_t row_groups(const GroupedImages& images, bool aligned, int threads);

// Parts that fill a GPU with blocks of `threads`.
std::int64_t many_parts(const GroupedImages& images, std::int64_t groups, int threads);

// The partition of a forward call; one of a single part takes one launch. `parts` as in group_norm.h.
Partition plan_forward(const GroupNorm& call, std::int64_t parts);

// Whether images and partition are within what kernels can count, and the blocks within what a grid can hold.
bool is_valid(const GroupedImages& images);
bool is_valid(const GroupedImages& images, const Partition& partition);

constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue

inline dim3 grid_of(const GroupedImages& images, const Partition& partition) {
  return dim3(static_cast<unsigned>(images.batch * partition.parts * partition.chunks));
}

// Call `function` with the Word that the partition's words are.
template <class Function>
int dispatch_words(const GroupedImages& images, const Partition& partition, const Function& function) {
  return dispatch(images.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kWidth = 16 / sizeof(T);
    if (partition.width == 1) return function(Word<T, 1, false>{});
    if (partition.channels_last) return function(Word<T, kWidth, true>{});
    return function(Word<T, kWidth, false>{});
  });
}

}  // namespace resshift::cuda::partitioning

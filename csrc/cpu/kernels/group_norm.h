// group_norm on the CPU as a sequence of stages, each for some of its tasks, which may run in any order and on any
// threads. What a task covers depends on the images' size alone, so that results never depend on threads.
// ops/group_norm.py has the formulas.
#pragma once

#include "../../common/group_norm.h"
#include "../isa.h"

namespace resshift::cpu {

struct GroupNorm {
  GroupedImages images;
  const void* x;
  Affine affine;
  float eps;
  void* y;
  float* mean;             // [B, G]
  float* rstd;             // [B, G]: 1 / deviation
  float* scratch;          // as many as group_norm_scratch says, 8-byte aligned
  float* table = nullptr;  // [B, 3, C]: mean, multiplier and offset of every channel
};

struct GroupNormBackward {
  GroupedImages images;
  const void *dy, *x;
  const float *mean, *rstd;  // of the forward pass
  Affine affine;
  void* dx;
  float *dweight, *dbias;  // [C]
  float *dscale, *dshift;  // [B, C]
  float* scratch;          // as many as group_norm_backward_scratch says, 8-byte aligned
};

// Two images to be merged into the channels-last one that a GroupNorm reads, which is memory yet to be written.
struct Merge {
  const void *x, *other;  // [B, pixels, C1] and [B, pixels, C2]
  std::int64_t channels;  // C1
  bool concat;            // else the sum
};

// Numbers that a task covers, about: large enough to be worth a thread, small enough to stay in a core's cache.
constexpr std::int64_t kSummed = 65536, kApplied = 16384;

RSF_INLINE std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// How a run of `length` pixels or numbers is cut into tasks.
struct Parts {
  std::int64_t length, size, count;

  RSF_INLINE Parts(std::int64_t all, std::int64_t about) : length(all) {
    size = about < 1 ? 16 : divide_up(about, 16) * 16;
    count = divide_up(length, size);
  }
  RSF_INLINE std::int64_t begin(std::int64_t part) const { return part * size; }
  RSF_INLINE std::int64_t end(std::int64_t part) const { return part + 1 < count ? (part + 1) * size : length; }
};

// Pixels of an image where channels are last, else the numbers of a group.
RSF_INLINE Parts summed_parts(const GroupedImages& images) {
  if (images.channels_last) return Parts(images.pixels, kSummed / images.channels);
  return Parts(images.channels / images.num_groups * images.pixels, kSummed);
}

// Pixels of an image where channels are last, else those of one channel.
RSF_INLINE Parts pixel_parts(const GroupedImages& images, std::int64_t numbers) {
  return Parts(images.pixels, images.channels_last ? numbers / images.channels : numbers);
}

// The images of a batch where channels are last, else all its channels; each is cut into pixel_parts.
RSF_INLINE std::int64_t planes(const GroupedImages& images) {
  return images.channels_last ? images.batch : images.batch * images.channels;
}

// Scratch: doubles [B, parts, G, 2], then pivots [B, G].
RSF_INLINE double* group_sums(const GroupNorm& call) { return reinterpret_cast<double*>(call.scratch); }
RSF_INLINE float* pivots(const GroupNorm& call) {
  const GroupedImages& images = call.images;
  return call.scratch + 4 * images.batch * images.num_groups * summed_parts(images).count;
}
RSF_INLINE std::int64_t group_norm_scratch(const GroupedImages& images) {
  return images.batch * images.num_groups * (4 * summed_parts(images).count + 1);
}

// Scratch: doubles [B, parts, C, 2], then the table of gradients [B, 5, C].
constexpr int kGradientRows = 5;
RSF_INLINE double* channel_sums(const GroupNormBackward& call) { return reinterpret_cast<double*>(call.scratch); }
RSF_INLINE float* gradient_table(const GroupNormBackward& call) {
  return call.scratch + 4 * call.images.batch * call.images.channels * pixel_parts(call.images, kSummed).count;
}
RSF_INLINE std::int64_t group_norm_backward_scratch(const GroupedImages& images) {
  return images.batch * images.channels * (4 * pixel_parts(images, kSummed).count + kGradientRows);
}

RSF_FOR_EVERY_ISA(
    // Tasks are images: write the pixels that pivots are taken from, so that there is something to take.
    void merge_samples(const GroupNorm& call, const Merge& merge, std::int64_t begin, std::int64_t end);
    // Tasks are images: a number near the mean of every group.
    void find_pivots(const GroupNorm& call, std::int64_t begin, std::int64_t end);
    // Tasks are [B, parts] where channels are last, else [B, G, parts]: sums of deviations from pivots, and of squares.
    void sum_groups(const GroupNorm& call, std::int64_t begin, std::int64_t end);
    // Tasks are [B, parts]: write a part of the merged images, then sum it.
    void merge_and_sum_groups(const GroupNorm& call, const Merge& merge, std::int64_t begin, std::int64_t end);
    // Tasks are [B, G]: statistics and the table.
    void tabulate(const GroupNorm& call, std::int64_t begin, std::int64_t end);
    // Tasks are [planes, parts], as backward: y from x and the table.
    void apply_table(const GroupNorm& call, std::int64_t begin, std::int64_t end);

    // Tasks are [B, G]: the table of y as the forward pass had it, the first three rows of that of gradients.
    void tabulate_again(const GroupNormBackward& call, std::int64_t begin, std::int64_t end);
    // Tasks are [planes, parts]: the sums over pixels of dz and of dz · (x − mean).
    void sum_channels(const GroupNormBackward& call, std::int64_t begin, std::int64_t end);
    // Tasks are [B, G]: gradients of scale and shift, and the rest of that table.
    void tabulate_gradients(const GroupNormBackward& call, std::int64_t begin, std::int64_t end);
    // Tasks are channels: gradients of weight and bias.
    void differentiate_parameters(const GroupNormBackward& call, std::int64_t begin, std::int64_t end);
    // Tasks are [planes, parts]: dx.
    void apply_gradients(const GroupNormBackward& call, std::int64_t begin, std::int64_t end);)

}  // namespace resshift::cpu

// Stages of group_norm and its gradient, each for some of its tasks, which may run in any order and on any threads.
// What a task covers depends on the images' size alone, so that results do not depend on the threads.
#pragma once

#include "../../common/integers.h"
#include "../group_norm.h"
#include "../isa.h"

namespace resshift::cpu {

// About how many elements a task covers: enough to be worth a thread, few enough to stay in a core's cache.
constexpr std::int64_t kSummed = 65536, kApplied = 16384;

// How a run of pixels or elements is divided into tasks of `about` that size.
struct Parts {
  std::int64_t length, size, count;

  RSF_INLINE Parts(std::int64_t all, std::int64_t about) : length(all) {
    size = about < 1 ? 16 : round_up(about, 16);
    count = divide_up(length, size);
  }
  RSF_INLINE std::int64_t begin(std::int64_t part) const { return part * size; }
  RSF_INLINE std::int64_t end(std::int64_t part) const { return part + 1 < count ? (part + 1) * size : length; }
};

// Pixels of an image where channels are last, else the elements of a group.
RSF_INLINE Parts summed_parts(const GroupedImages& images) {
  if (images.channels_last) return Parts(images.pixels, kSummed / images.channels);
  return Parts(images.channels / images.num_groups * images.pixels, kSummed);
}

// Pixels of an image where channels are last, else those of one channel.
RSF_INLINE Parts pixel_parts(const GroupedImages& images, std::int64_t elements) {
  return Parts(images.pixels, images.channels_last ? elements / images.channels : elements);
}

// What pixel_parts divides: the images of a batch where channels are last, else all channels of all images.
RSF_INLINE std::int64_t planes(const GroupedImages& images) {
  return images.channels_last ? images.batch : images.batch * images.channels;
}

// Scratch: doubles [B, parts, G, 2], then pivots [B, G].
RSF_INLINE double* group_sums(const GroupNorm& call) { return reinterpret_cast<double*>(call.scratch); }
RSF_INLINE float* pivots(const GroupNorm& call) {
  const GroupedImages& images = call.images;
  return call.scratch + 4 * images.batch * images.num_groups * summed_parts(images).count;
}
RSF_INLINE std::int64_t statistics_scratch(const GroupedImages& images) {
  return images.batch * images.num_groups * (4 * summed_parts(images).count + 1);
}

// Scratch: doubles [B, parts, C, 2], then the table of gradients [B, 5, C].
constexpr int kGradientRows = 5;
RSF_INLINE double* channel_sums(const GroupNormBackward& call) { return reinterpret_cast<double*>(call.scratch); }
RSF_INLINE float* gradient_table(const GroupNormBackward& call) {
  return call.scratch + 4 * call.images.batch * call.images.channels * pixel_parts(call.images, kSummed).count;
}
RSF_INLINE std::int64_t gradients_scratch(const GroupedImages& images) {
  return images.batch * images.channels * (4 * pixel_parts(images, kSummed).count + kGradientRows);
}

RSF_FOR_EVERY_ISA(
    // Tasks are images: the pivot of every group, an estimate of its mean.
    void find_pivots(const GroupNorm& call, std::int64_t begin, std::int64_t end);
    // Tasks are [B, parts] where channels are last, else [B, G, parts]: sums of deviations from pivots, and of squares.
    void sum_groups(const GroupNorm& call, std::int64_t begin, std::int64_t end);
    // Tasks are [B, G]: statistics, and from them the table [B, 3, C] of mean, multiplier and offset.
    void tabulate(const GroupNorm& call, float* table, std::int64_t begin, std::int64_t end);
    // Tasks are [planes, parts]: y from x and the table.
    void apply_table(const GroupNorm& call, const float* table, std::int64_t begin, std::int64_t end);

    // Tasks are [B, G]: the forward pass's table again, as the first three rows of that of gradients.
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

#include "group_norm.h"

#include "group_norm_stages.h"

namespace resshift::cpu {
namespace {

// Of group_norm's own table in its scratch memory: a multiple of 4, so that the doubles behind it are aligned.
std::int64_t table_size(const GroupedImages& images) { return 4 * images.batch * images.channels; }

}  // namespace

std::int64_t group_norm_affine_scratch(const GroupedImages& images) { return statistics_scratch(images); }

std::int64_t group_norm_scratch(const GroupedImages& images) { return table_size(images) + statistics_scratch(images); }

std::int64_t group_norm_backward_scratch(const GroupedImages& images) { return gradients_scratch(images); }

void group_norm_affine(const GroupNorm& call, float* table) {
  const GroupedImages& images = call.images;
  const std::int64_t rows = images.channels_last ? images.batch : images.batch * images.num_groups;
  run_find_pivots(call);
  run_stage(RSF_KERNEL(sum_groups), rows * summed_parts(images).count, images.elements(), call);
  run_tabulate(call, table);
}

void group_norm(const GroupNorm& call) {
  float* const table = call.scratch;
  GroupNorm own = call;
  own.scratch += table_size(call.images);
  group_norm_affine(own, table);
  run_apply_table(own, table);
}

void group_norm_backward(const GroupNormBackward& call) {
  const GroupedImages& images = call.images;
  const std::int64_t groups = images.batch * images.num_groups, channels = images.batch * images.channels;
  const std::int64_t parts = pixel_parts(images, kSummed).count, applied = pixel_parts(images, kApplied).count;
  run_stage(RSF_KERNEL(tabulate_again), groups, channels, call);
  run_stage(RSF_KERNEL(sum_channels), planes(images) * parts, images.elements(), call);
  run_stage(RSF_KERNEL(tabulate_gradients), groups, channels * parts * 4, call);
  run_stage(RSF_KERNEL(differentiate_parameters), images.channels, channels * 8, call);
  run_stage(RSF_KERNEL(apply_gradients), planes(images) * applied, images.elements(), call);
}

}  // namespace resshift::cpu

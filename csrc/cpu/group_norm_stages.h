// The stages of kernels/group_norm.h, each with all threads.
#pragma once

#include "kernels/group_norm.h"
#include "parallel.h"

namespace resshift::cpu {

// Run a stage, a kernel that takes `arguments` and a range of tasks, which work on `elements` together. A thread takes
// at least 32768 of them: handing over fewer costs more than working on them.
template <class Stage, class... Arguments>
void run_stage(Stage stage, std::int64_t tasks, std::int64_t elements, const Arguments&... arguments) {
  const std::int64_t grain = divide_up(32768 * tasks, elements);
  parallel_for(0, tasks, grain, [&](std::int64_t begin, std::int64_t end) { stage(arguments..., begin, end); });
}

// How many elements `merge_samples` and `find_pivots` read, at most.
inline std::int64_t sampled_elements(const GroupedImages& images) { return images.batch * images.channels * 64; }

inline void run_find_pivots(const GroupNorm& call) {
  run_stage(RSF_KERNEL(find_pivots), call.images.batch, sampled_elements(call.images), call);
}

inline void run_tabulate(const GroupNorm& call, float* table) {
  const GroupedImages& images = call.images;
  const std::int64_t groups = images.batch * images.num_groups, parts = summed_parts(images).count;
  run_stage(RSF_KERNEL(tabulate), groups, groups * parts * 4 + images.batch * images.channels * 8, call, table);
}

inline void run_apply_table(const GroupNorm& call, const float* table) {
  const std::int64_t tasks = planes(call.images) * pixel_parts(call.images, kApplied).count;
  run_stage(RSF_KERNEL(apply_table), tasks, call.images.elements(), call, table);
}

}  // namespace resshift::cpu

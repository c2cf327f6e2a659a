#include "add_concat_group_norm.h"

#include "group_norm_stages.h"
#include "kernels/add_concat_group_norm.h"

namespace resshift::cpu {

void add_concat_group_norm(const AddConcatGroupNorm& call) {
  const GroupedImages& images = call.norm.images;
  const std::int64_t parts = summed_parts(images).count;
  run_stage(RSF_KERNEL(merge_samples), images.batch, sampled_elements(images), call);
  run_find_pivots(call.norm);
  run_stage(RSF_KERNEL(merge_and_sum_groups), images.batch * parts, images.elements(), call);
  run_tabulate(call.norm, call.table);
  run_apply_table(call.norm, call.table);
}

}  // namespace resshift::cpu

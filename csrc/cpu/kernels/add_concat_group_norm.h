// The stages that add_concat_group_norm adds to those of group_norm: the merged images are written while they are
// summed.
#pragma once

#include "../add_concat_group_norm.h"
#include "../isa.h"

namespace resshift::cpu {

RSF_FOR_EVERY_ISA(
    // Tasks are images: write the pixels that find_pivots samples, before the others are written.
    void merge_samples(const AddConcatGroupNorm& call, std::int64_t begin, std::int64_t end);
    // Tasks are [B, parts]: write a part of the merged images, and sum_groups of it.
    void merge_and_sum_groups(const AddConcatGroupNorm& call, std::int64_t begin, std::int64_t end);)

}  // namespace resshift::cpu

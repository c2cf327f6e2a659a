// group_norm and its gradient on the CPU; ops/group_norm.py has the formulas.
#pragma once

#include "../common/group_norm.h"

namespace resshift::cpu {

// Floats of scratch memory that a call needs, 8-byte aligned.
std::int64_t group_norm_scratch(const GroupedImages& images);
std::int64_t group_norm_affine_scratch(const GroupedImages& images);
std::int64_t group_norm_backward_scratch(const GroupedImages& images);

void group_norm(const GroupNorm& call);

// The table [B, 3, C] of mean, multiplier and offset: group_norm(x) is (x − mean) · multiplier + offset. `call` needs
// no outputs.
void group_norm_affine(const GroupNorm& call, float* table);

void group_norm_backward(const GroupNormBackward& call);

}  // namespace resshift::cpu

// Launchers of group_norm's kernels; they return the cudaError_t of the launch. ops/group_norm.py has the formulas.
#pragma once

#include "../common/group_norm.h"

namespace resshift::cuda {

// `parts` is how many parts the pixels of an image are divided into, about; 0: as many as are fastest.

// Floats of scratch memory that a call needs; all else of the call must be set.
std::int64_t group_norm_scratch(const GroupNorm& call, std::int64_t parts = 0);
std::int64_t group_norm_backward_scratch(const GroupNormBackward& call, std::int64_t parts = 0);

int group_norm(const GroupNorm& call, void* stream, std::int64_t parts = 0);
int group_norm_backward(const GroupNormBackward& call, void* stream, std::int64_t parts = 0);

}  // namespace resshift::cuda

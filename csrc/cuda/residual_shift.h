// Launchers of the residual shift's kernels; they return the cudaError_t of the launch.
#pragma once

#include "../common/residual_shift.h"

namespace resshift::cuda {

int chain_step(const ChainStep& call, void* stream);
int q_sample(const QSample& call, void* stream);

}  // namespace resshift::cuda

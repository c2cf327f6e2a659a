// Launcher of vector_quantize's kernels; it returns the cudaError_t of the launch.
#pragma once

#include "../common/vector_quantize.h"

namespace resshift::cuda {

int vector_quantize(const VectorQuantize& call, void* stream);

}  // namespace resshift::cuda

// CUDA's run time for callers that have no headers of it.
#pragma once

namespace resshift::cuda {

// The description of a cudaError_t.
const char* error_string(int error);

}  // namespace resshift::cuda

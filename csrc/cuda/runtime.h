// What callers without CUDA's headers need to know of its run time.
#pragma once

namespace resshift::cuda {

// What a cudaError_t means.
const char* error_string(int error);

}  // namespace resshift::cuda

#include "runtime.h"

#include "device.h"

namespace resshift::cuda {

const char* error_string([[maybe_unused]] int error) {
#if defined(RSF_EMULATED)
  return "emulated launches throw";
#else
  return cudaGetErrorString(static_cast<cudaError_t>(error));
#endif
}

}  // namespace resshift::cuda

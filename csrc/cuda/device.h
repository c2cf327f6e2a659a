// What all kernels use: launches, shared memory, and reductions over warps.
//
// Everything that only nvcc can read (launch syntax, `extern __shared__`, PTX) is in this file and in matrix.h, so that
// csrc/emulation can replace it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/integers.h"
#include "../common/scalar.h"

#if defined(RSF_EMULATED)
#include "../emulation/cuda.h"
#else
#include <cuda_runtime.h>
#endif

// Declare `name` as a pointer to `count` elements of the block's shared memory; each declaration has its own.
#if defined(RSF_EMULATED)
#define RSF_SHARED(type, name, count)       \
  static const char name##_declaration = 0; \
  type* const name = static_cast<type*>(::emulation::static_shared(&name##_declaration, sizeof(type) * (count)))
#else
#define RSF_SHARED(type, name, count)               \
  __shared__ alignas(16) type name##_memory[count]; \
  type* const name = name##_memory
#endif

namespace resshift {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr std::size_t kStaticSharedBytes = 48 * 1024;  // for more, a kernel's attribute has to be set
constexpr std::size_t kMostSharedBytes = 99 * 1024;    // a block's on sm_86, 89 and 120; the others have more

// Start `kernel` on a cudaStream_t; returns the cudaError_t of the launch.
template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, void* stream,
           const Arguments&... arguments) {
#if defined(RSF_EMULATED)
  (void)stream;
  emulation::run_grid(grid, block, shared_bytes, [&] { kernel(arguments...); });
  return 0;
#else
  if (shared_bytes > kStaticSharedBytes) {
    // Always the same value: the attribute is the kernel's, and other threads set it too.
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kMostSharedBytes));
    if (error != cudaSuccess) {
      cudaGetLastError();  // or the next launch would return it
      return error;
    }
  }
  // clang-format off: it takes a header for plain C++, without launches
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  // clang-format on
  return cudaGetLastError();
#endif
}

// The block's shared memory of the size that the launch gave, 16-byte aligned.
template <class T>
RSF_DEVICE T* dynamic_shared() {
#if defined(RSF_EMULATED)
  return static_cast<T*>(emulation::dynamic_shared());
#elif defined(__CUDACC__)
  extern __shared__ uint4 resshift_dynamic_shared[];
  return reinterpret_cast<T*>(resshift_dynamic_shared);
#endif
}

// Store 16 aligned bytes at once, also where the compiler cannot see the alignment and would split store_vector.
RSF_DEVICE void store_words(void* address, const std::uint32_t (&words)[4]) {
#if RSF_ON_GPU
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};\n" ::"l"(address), "r"(words[0]), "r"(words[1]), "r"(words[2]),
               "r"(words[3])
               : "memory");
#else
  const Vector<std::uint32_t, 4> vector{{words[0], words[1], words[2], words[3]}};
  store_vector(static_cast<std::uint32_t*>(address), vector);
#endif
}

// Load 16 aligned bytes past the L1 cache, which does not see what other multiprocessors write.
RSF_DEVICE Vector<float, 4> load_fresh(const float* address) {
#if RSF_ON_GPU
  return bit_cast<Vector<float, 4>>(__ldcg(reinterpret_cast<const float4*>(address)));
#else
  return load_vector<4>(address);
#endif
}

// 2^x, and 0 where that is subnormal; exp2f takes three more instructions to get subnormals right.
RSF_DEVICE float power_of_two(float x) {
#if RSF_ON_GPU
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

// For access to 16 bytes at once.
RSF_INLINE bool is_aligned(const void* address) { return reinterpret_cast<std::uintptr_t>(address) % 16 == 0; }

// Reductions over each LANES neighbouring lanes of a warp; every lane gets the result. The order is fixed, so that
// results are the same from run to run.
template <int LANES = kWarpSize>
RSF_DEVICE float warp_sum(float value) {
#pragma unroll
  for (int offset = LANES / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

template <int LANES = kWarpSize>
RSF_DEVICE float warp_max(float value) {
#pragma unroll
  for (int offset = LANES / 2; offset > 0; offset /= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, offset));
  return value;
}

}  // namespace resshift

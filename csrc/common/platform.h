// Function qualifiers for the compilers that read the sources.
//
// nvcc compiles csrc/cuda for GPUs. With RSF_EMULATED a host compiler compiles the same files for csrc/emulation, which
// executes them without a GPU. Without it, a host compiler compiles csrc/cpu and csrc/bindings.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define RSF_INLINE __host__ __device__ __forceinline__
#define RSF_DEVICE __device__ __forceinline__
#define RSF_HOST inline
#else
// Always inlined: csrc/cpu/kernels compiles the same functions for several instruction sets, and the linker would keep
// one copy of each.
#define RSF_INLINE inline __attribute__((always_inline))
#define RSF_DEVICE inline
#define RSF_HOST RSF_INLINE
#endif

// Whether this pass of nvcc is for a GPU: it reads every file once for the host and once for each architecture.
#if defined(__CUDA_ARCH__)
#define RSF_ON_GPU 1
#else
#define RSF_ON_GPU 0
#endif

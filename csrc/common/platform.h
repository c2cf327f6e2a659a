// Which compiler reads the sources, and what it makes of them.
//
// nvcc compiles csrc/cuda for GPUs. A host compiler with RSF_EMULATED compiles the very same files for the emulation of
// csrc/emulation, which executes them without a GPU. A host compiler without it compiles csrc/cpu and csrc/bindings.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define RSF_INLINE __host__ __device__ __forceinline__
#define RSF_DEVICE __device__ __forceinline__
#define RSF_HOST inline
#else
// Always: csrc/cpu compiles the same functions for several instruction sets, and a linker would keep one copy of each.
#define RSF_INLINE inline __attribute__((always_inline))
#define RSF_DEVICE inline
#define RSF_HOST RSF_INLINE
#endif

// Code for the GPU itself: nvcc reads every file several times, once for the host and once for each architecture.
#if defined(__CUDA_ARCH__)
#define RSF_ON_GPU 1
#else
#define RSF_ON_GPU 0
#endif

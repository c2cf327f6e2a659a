// The part of CUDA's language that the kernels use, for a host compiler; `emulator.h` executes it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __grid_constant__
#define __launch_bounds__(...)

#define threadIdx (::emulation::thread_index())
#define blockIdx (::emulation::block_index())
#define blockDim (::emulation::block_size())
#define gridDim (::emulation::grid_size())

#define __syncthreads() ::emulation::sync_block(__FILE__, __LINE__)

using dim3 = emulation::Dim3;

namespace emulation {

template <class T>
struct Shuffle {
  T value, result;
  int source;  // the lane that is read, within 0 … 31
};

template <class T>
T shuffle(const char* kind, unsigned mask, T value, int source) {
  Shuffle<T> slot{value, value, source};
  warp_operation(kind, mask, &slot, [](void* const slots[kWarpSize]) {
    for (unsigned i = 0; i < kWarpSize; ++i) {
      auto* lane = static_cast<Shuffle<T>*>(slots[i]);
      if (!lane) continue;
      const auto* from = static_cast<const Shuffle<T>*>(slots[lane->source]);
      if (!from) throw std::runtime_error("a shuffle reads from a lane outside of its mask");
      lane->result = from->value;
    }
  });
  return slot.result;
}

}  // namespace emulation

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = static_cast<int>(emulation::lane());
  return emulation::shuffle("__shfl_sync", mask, value, lane / width * width + source % width);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const int lane = static_cast<int>(emulation::lane()), source = lane ^ lane_mask;
  // As on a GPU, a lane whose source is in another part of the warp gets its own value.
  return emulation::shuffle("__shfl_xor_sync", mask, value, source / width > lane / width ? lane : source);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = static_cast<int>(emulation::lane()), source = lane + static_cast<int>(delta);
  return emulation::shuffle("__shfl_down_sync", mask, value, source / width > lane / width ? lane : source);
}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulation::warp_operation("__syncwarp", mask, nullptr, [](void* const*) {});
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  struct Slot {
    bool predicate;
    unsigned result;
  } slot{predicate != 0, 0};
  emulation::warp_operation("__ballot_sync", mask, &slot, [](void* const slots[emulation::kWarpSize]) {
    unsigned votes = 0;
    for (unsigned i = 0; i < emulation::kWarpSize; ++i) {
      if (slots[i] && static_cast<Slot*>(slots[i])->predicate) votes |= 1u << i;
    }
    for (unsigned i = 0; i < emulation::kWarpSize; ++i) {
      if (slots[i]) static_cast<Slot*>(slots[i])->result = votes;
    }
  });
  return slot.result;
}

template <class T>
T atomicAdd(T* address, T value) {
  // Threads are switched at barriers and warp operations only, so that this is atomic.
  const T before = *address;
  *address = before + value;
  return before;
}

// Threads run one after another, so that what one has written is there for all.
inline void __threadfence() {}

using std::max;
using std::min;

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

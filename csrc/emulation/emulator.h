// Executes CUDA kernels on the CPU: the threads of a block are fibers, between which one scheduler switches.
//
// A thread runs until it waits at a barrier or for the other lanes of a warp operation. Between two such points threads
// run one after another in the order that was set: a kernel whose result depends on the order has a race. What is
// undefined on a GPU is an error here: a barrier that some threads do not reach, and a lane mask that does not match
// the lanes that take part. Shared memory starts as NaN, and each array is an allocation of its own, so that
// AddressSanitizer sees accesses beyond it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace emulation {

struct Dim3 {
  unsigned x, y, z;
  Dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

constexpr unsigned kWarpSize = 32;

// Order of a block's threads between barriers, and of the grid's blocks.
enum class Order { kAscending, kDescending, kShuffled };

void set_order(Order order);

// Run `kernel` once for every thread of every block. Throws std::runtime_error for what is undefined on a GPU.
void run_grid(Dim3 grid, Dim3 block, std::size_t shared_bytes, const std::function<void()>& kernel);

// Of the running thread.
const Dim3& thread_index();
const Dim3& block_index();
const Dim3& block_size();
const Dim3& grid_size();
unsigned lane();

void sync_block(const char* file, int line);

// The block's memory for one declaration, which an address identifies.
void* static_shared(const void* declaration, std::size_t bytes);
void* dynamic_shared();

// Wait until all lanes of `mask` have called with the same mask and kind; the last one calls `operate` on the slots of
// all 32 lanes, null for those outside the mask.
using WarpOperation = void (*)(void* const slots[kWarpSize]);
void warp_operation(const char* kind, unsigned mask, void* slot, WarpOperation operate);

// Asynchronous copies of the running thread. They are made when `wait_copies` waits for their group and, in descending
// order, also at once: a GPU may do either.
void copy_later(void* to, const void* from, std::size_t bytes);
void commit_copies();
void wait_copies(int groups_left);

}  // namespace emulation

// The project's own names for the matrix instructions and asynchronous copies of PTX, from sm_80 on.
#pragma once

#include <cstdint>

#include "../common/scalar.h"
#include "device.h"

#if defined(RSF_EMULATED)
#include "../emulation/matrix.h"
#endif

namespace resshift {

// D += A B for a warp: A [16, 16] and B [16, 8] of T (Half or BFloat16), D [16, 8] float32.
//
// By the PTX ISA ("mma.m16n8k16"), lane l = 4 g + t holds two elements in each register:
//   a[0] row g, columns 2t, 2t + 1;  a[1] row g + 8;  a[2] row g, columns 2t + 8, 2t + 9;  a[3] row g + 8, the same
//   b[0] rows 2t, 2t + 1, column g;  b[1] rows 2t + 8, 2t + 9
//   d[0], d[1] row g, columns 2t, 2t + 1;  d[2], d[3] row g + 8
template <class T>
RSF_DEVICE void mma_16x8x16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
#if defined(RSF_EMULATED)
  emulation::mma_16x8x16<T>(d, a, b);
#elif RSF_ON_GPU
  if constexpr (sizeof(T) != 2) {
    static_assert(sizeof(T) == 2, "factors are float16 or bfloat16");
  } else if constexpr (std::is_same_v<T, Half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

#if RSF_ON_GPU
RSF_DEVICE std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}
#endif

// Load four 8 × 8 matrices of 16-bit elements from shared memory. Lane 8 m + r gives the address of row r of matrix m,
// 16-byte aligned; lane 4 g + t gets the elements 2t, 2t + 1 of row g of matrix m in registers[m].
RSF_DEVICE void load_matrices(std::uint32_t (&registers)[4], const void* row) {
#if defined(RSF_EMULATED)
  emulation::load_matrices<4, false>(registers, row);
#elif RSF_ON_GPU
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}

// The same, transposed: lane 4 g + t gets the elements g of rows 2t, 2t + 1.
RSF_DEVICE void load_matrices_transposed(std::uint32_t (&registers)[4], const void* row) {
#if defined(RSF_EMULATED)
  emulation::load_matrices<4, true>(registers, row);
#elif RSF_ON_GPU
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}

// Begin to copy 16 bytes from global to shared memory, both aligned to 16.
RSF_DEVICE void copy_async(void* shared, const void* global) {
#if defined(RSF_EMULATED)
  emulation::copy_later(shared, global, 16);
#elif RSF_ON_GPU
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(shared_address(shared)), "l"(global) : "memory");
#endif
}

// End a group of copies.
RSF_DEVICE void commit_copies() {
#if defined(RSF_EMULATED)
  emulation::commit_copies();
#elif RSF_ON_GPU
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Wait until at most GROUPS of this thread's groups are in flight; other threads see the rest after a barrier.
template <int GROUPS>
RSF_DEVICE void wait_copies() {
#if defined(RSF_EMULATED)
  emulation::wait_copies(GROUPS);
#elif RSF_ON_GPU
  asm volatile("cp.async.wait_group %0;\n" ::"n"(GROUPS) : "memory");
#endif
}

}  // namespace resshift

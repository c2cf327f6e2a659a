// Which instruction set the CPU kernels run in.
//
// Every file of kernels/ is compiled once for each instruction set, with RSF_ISA naming it, into a namespace of that
// name. Kernels are declared with RSF_FOR_EVERY_ISA and called through RSF_KERNEL. An inline function that a kernel
// shares with other files must be RSF_INLINE: the linker keeps one copy of any other, perhaps the one that was compiled
// for an instruction set that the processor lacks.
#pragma once

namespace resshift::cpu {

// Named as the namespaces.
enum class Isa : int { portable, avx2, avx512, avx512_bf16, neon };

// The best that this processor runs and the library has, or less if the limit is lower.
Isa isa();

// Set the limit, for tests. RESSHIFT_FAST_CPU_ISA=portable|avx2|avx512|avx512_bf16 sets it at the start. On arm64 there
// is only NEON, which every processor has, and no limit.
void limit_isa(Isa limit);

}  // namespace resshift::cpu

// A build for tests may have two of them only, or one that has both names: python_tests/cpu_build.py.
#if defined(RSF_BEST_ISA)
#define RSF_FOR_EVERY_ISA(...) \
  namespace RSF_LEAST_ISA {    \
  __VA_ARGS__                  \
  }                            \
  namespace RSF_BEST_ISA {     \
  __VA_ARGS__                  \
  }
#define RSF_KERNEL(name) (isa() == Isa::RSF_BEST_ISA ? &RSF_BEST_ISA::name : &RSF_LEAST_ISA::name)
#elif defined(__x86_64__)
#define RSF_FOR_EVERY_ISA(...) \
  namespace portable {         \
  __VA_ARGS__                  \
  }                            \
  namespace avx2 {             \
  __VA_ARGS__                  \
  }                            \
  namespace avx512 {           \
  __VA_ARGS__                  \
  }                            \
  namespace avx512_bf16 {      \
  __VA_ARGS__                  \
  }
// A pointer to the kernel of that name for this processor.
#define RSF_KERNEL(name)                          \
  (isa() == Isa::avx512_bf16 ? &avx512_bf16::name \
   : isa() == Isa::avx512    ? &avx512::name      \
   : isa() == Isa::avx2      ? &avx2::name        \
                             : &portable::name)
#elif defined(__aarch64__)
#define RSF_FOR_EVERY_ISA(...) \
  namespace neon {             \
  __VA_ARGS__                  \
  }
#define RSF_KERNEL(name) (&neon::name)
#else
#define RSF_FOR_EVERY_ISA(...) \
  namespace portable {         \
  __VA_ARGS__                  \
  }
#define RSF_KERNEL(name) (&portable::name)
#endif
